//! See `postkeep_testkit::fuzz::approval_list`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::approval_list(data));
