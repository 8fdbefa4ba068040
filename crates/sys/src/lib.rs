//! System calls: descriptor passing, inherited descriptors, locks, privileges.
