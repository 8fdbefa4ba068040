//! See `postkeep_testkit::fuzz::socketmap_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::socketmap_requests(data));
