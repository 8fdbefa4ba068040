//! See `postkeep_testkit::fuzz::mongodb_rules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::mongodb_rules(data));
