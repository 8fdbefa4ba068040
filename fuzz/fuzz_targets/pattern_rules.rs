//! See `postkeep_testkit::fuzz::pattern_rules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::pattern_rules(data));
