//! The lookup table server: approval, sharing, requests.
