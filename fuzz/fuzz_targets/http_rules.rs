//! See `postkeep_testkit::fuzz::http_rules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::http_rules(data));
