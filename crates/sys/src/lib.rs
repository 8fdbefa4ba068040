//! System calls: descriptor passing, inherited descriptors, locks, privileges.

pub mod spawn;
