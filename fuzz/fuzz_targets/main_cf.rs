//! See `postkeep_testkit::fuzz::main_cf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::main_cf(data));
