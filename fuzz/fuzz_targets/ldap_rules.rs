//! See `postkeep_testkit::fuzz::ldap_rules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postkeep_testkit::fuzz::ldap_rules(data));
