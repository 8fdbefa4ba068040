//! See `postkeep_testkit::fuzz::scache_transfer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::scache_transfer(data));
