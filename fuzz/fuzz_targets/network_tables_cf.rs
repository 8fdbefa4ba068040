//! See `postkeep_testkit::fuzz::network_tables_cf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::network_tables_cf(data));
