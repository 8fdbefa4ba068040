//! See `postkeep_testkit::fuzz::socketmap_replies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::socketmap_replies(data));
