//! The time of day in the local zone, for log lines.
#![allow(unsafe_code, reason = "neither rustix nor nix offers localtime_r(3)")]

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment taken apart in the local time zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalTime {
    /// Year, as written: 2026.
    pub year: i32,
    /// Month, 0 is January.
    pub month: u8,
    /// Day of the month, from 1.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute.
    pub minute: u8,
    /// Second, 60 in a leap second.
    pub second: u8,
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

impl LocalTime {
    /// The name of the month, as syslog spells it.
    pub fn month_name(&self) -> &'static str {
        MONTHS[usize::from(self.month) % MONTHS.len()]
    }
}

/// A clock that all processes of this machine see alike, which is never set and starts with the machine.
pub fn since_boot() -> std::time::Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or(0);
    std::time::Duration::new(seconds, nanoseconds)
}

/// Takes a moment apart.
///
/// The first call of a process reads the zone (`TZ`, `/etc/localtime`); later calls keep it. So call it once
/// before chroot.
///
/// # References
/// `localtime_r(3)`.
pub fn local_time(moment: SystemTime) -> LocalTime {
    let seconds = match moment.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds)
        }
    };
    // SAFETY: `tm` is plain data, for which all zero bits are a value.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live objects of the right types; the function keeps neither.
    if unsafe { libc::localtime_r(&raw const seconds, &raw mut parts) }.is_null() {
        return LocalTime::default();
    }
    let small = |value: libc::c_int| u8::try_from(value).unwrap_or(0);
    LocalTime {
        year: parts.tm_year.saturating_add(1900),
        month: small(parts.tm_mon),
        day: small(parts.tm_mday),
        hour: small(parts.tm_hour),
        minute: small(parts.tm_min),
        second: small(parts.tm_sec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_known_moment_is_within_a_day_of_the_same_date_everywhere() {
        // 2026-11-22 12:00:00 UTC: the same date from zone -12 to zone +11.
        let local = local_time(UNIX_EPOCH + Duration::from_hours(498_708));
        assert_eq!(
            (local.year, local.month_name(), local.second),
            (2026, "Nov", 0)
        );
        assert!((22..=23).contains(&local.day));
    }

    #[test]
    fn moments_before_the_epoch_are_dates_too() {
        let local = local_time(UNIX_EPOCH - Duration::from_hours(960));
        assert_eq!((local.year, local.month_name()), (1969, "Nov"));
    }
}
