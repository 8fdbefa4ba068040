//! See `postkeep_testkit::fuzz::memcache_replies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::memcache_replies(data));
