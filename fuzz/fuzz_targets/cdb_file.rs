//! See `postkeep_testkit::fuzz::cdb_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::cdb_file(data));
