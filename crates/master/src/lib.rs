//! A stand-in for master(8) to run services without Postfix.
