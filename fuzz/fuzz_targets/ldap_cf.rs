//! See `postkeep_testkit::fuzz::ldap_cf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::ldap_cf(data));
