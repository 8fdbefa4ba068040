//! Test clock, vector loader, table contract, harness of a real Postfix.
