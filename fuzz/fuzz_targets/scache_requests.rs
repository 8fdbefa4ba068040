//! See `postkeep_testkit::fuzz::scache_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::scache_requests(data));
