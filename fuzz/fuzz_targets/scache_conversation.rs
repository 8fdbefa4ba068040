//! See `postkeep_testkit::fuzz::scache_conversation`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::scache_conversation(data));
