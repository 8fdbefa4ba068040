//! See `postkeep_testkit::fuzz::table_templates`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::table_templates(data));
