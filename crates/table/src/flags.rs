//! The flag bits of tables and requests, as they travel on the wire (Postfix `src/util/dict.h`).

use std::fmt;

bitflags::bitflags! {
    /// Flags of a table or of a request. Unknown bits are kept.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Flags: u32 {
        /// A duplicate on update is warned about; the old entry stays.
        const DUP_WARN = 0x1;
        /// A duplicate on update is dropped silently.
        const DUP_IGNORE = 0x2;
        /// Keys are stored without a trailing NUL.
        const TRY0NULL = 0x4;
        /// Keys are stored with a trailing NUL.
        const TRY1NULL = 0x8;
        /// The table holds fixed strings.
        const FIXED = 0x10;
        /// The table holds patterns.
        const PATTERN = 0x20;
        /// Lock the file around each access.
        const LOCK = 0x40;
        /// A duplicate on update replaces the old entry.
        const DUP_REPLACE = 0x80;
        /// An update is on disk before it is acknowledged.
        const SYNC_UPDATE = 0x100;
        /// Log each operation (up to Postfix 3.10).
        const DEBUG = 0x200;
        /// No substitution of `$1` in results.
        const NO_REGSUB = 0x800;
        /// Open `proxy:` tables directly.
        const NO_PROXY = 0x1000;
        /// Refuse tables whose data cannot be trusted.
        const NO_UNAUTH = 0x2000;
        /// Fold the case of keys of fixed tables.
        const FOLD_FIX = 0x4000;
        /// Fold the case of keys of pattern tables.
        const FOLD_MUL = 0x8000;
        /// One lock for as long as the table is open.
        const OPEN_LOCK = 0x1_0000;
        /// Many updates follow.
        const BULK_UPDATE = 0x2_0000;
        /// Several writers are safe.
        const MULTI_WRITER = 0x4_0000;
        /// The opener wants keys and values checked as UTF-8.
        const UTF8_REQUEST = 0x8_0000;
        /// Keys and values are checked as UTF-8.
        const UTF8_ACTIVE = 0x10_0000;
        /// Values in the source name files that hold the value.
        const RHS_IS_FILE = 0x20_0000;
        /// Stands in for a table that could not be opened (3.12).
        const SURROGATE = 0x40_0000;

        const _ = !0;
    }
}

impl Flags {
    /// What a table says about itself (generation 1).
    pub const IMPLEMENTATION: Self = Self::from_bits_retain(0x4_0030);
    /// What may change from request to request (generation 1).
    pub const REQUEST: Self = Self::from_bits_retain(0x8_F9C3);
    /// What tells instances apart (generation 1): all the others.
    pub const INSTANCE: Self = Self::from_bits_retain(!(0x4_0030 | 0x8_F9C3));

    /// The log form: names joined by `|` in bit order, unknown bits in hexadecimal, nothing for no flags.
    pub fn log_form(self) -> LogForm {
        LogForm(self)
    }
}

/// Displays flags as the reference logs them.
#[derive(Clone, Copy, Debug)]
pub struct LogForm(Flags);

const NAMES: [(u32, &str); 22] = [
    (0x1, "warn_dup"),
    (0x2, "ignore_dup"),
    (0x4, "try0null"),
    (0x8, "try1null"),
    (0x10, "fixed"),
    (0x20, "pattern"),
    (0x40, "lock"),
    (0x80, "replace"),
    (0x100, "sync_update"),
    (0x200, "debug"),
    (0x800, "no_regsub"),
    (0x1000, "no_proxy"),
    (0x2000, "no_unauth"),
    (0x4000, "fold_fix"),
    (0x8000, "fold_mul"),
    (0x1_0000, "open_lock"),
    (0x2_0000, "bulk_update"),
    (0x4_0000, "multi_writer"),
    (0x8_0000, "utf8_request"),
    (0x10_0000, "utf8_active"),
    (0x20_0000, "src_rhs_is_file"),
    (0x40_0000, "surrogate"),
];

impl fmt::Display for LogForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.bits();
        let mut separator = "";
        for (bit, name) in NAMES {
            if rest & bit != 0 {
                write!(f, "{separator}{name}")?;
                separator = "|";
                rest &= !bit;
            }
        }
        if rest != 0 {
            write!(f, "{separator}{rest:#x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_form_is_the_reference_s() {
        let form = |bits| Flags::from_bits_retain(bits).log_form().to_string();
        assert_eq!(form(0), "");
        assert_eq!(form(524_353), "warn_dup|lock|utf8_request");
        assert_eq!(form(0x10400), "open_lock|0x400");
    }

    #[test]
    fn masks_cover_everything_once() {
        assert_eq!(Flags::INSTANCE.bits(), 0xFFF3_060C);
    }
}
