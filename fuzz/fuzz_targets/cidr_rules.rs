//! See `postkeep_testkit::fuzz::cidr_rules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::cidr_rules(data));
