//! See `postkeep_testkit::fuzz::berkeley_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::berkeley_file(data));
