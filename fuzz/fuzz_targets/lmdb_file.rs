//! See `postkeep_testkit::fuzz::lmdb_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::lmdb_file(data));
