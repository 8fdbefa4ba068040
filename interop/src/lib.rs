//! Tests against an installed Postfix.
