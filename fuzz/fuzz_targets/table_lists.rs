//! See `postkeep_testkit::fuzz::table_lists`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::table_lists(data));
