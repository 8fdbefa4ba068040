//! Clients of scache and proxymap.
