//! Which Postfix a dictionary behaves like.

use std::fmt;

/// A Postfix release, as far as configuration differs between them.
///
/// The latest patch of each is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Release {
    V3_1 = 1,
    V3_2,
    V3_3,
    V3_4,
    V3_5,
    V3_6,
    #[default]
    V3_7,
    V3_8,
    V3_9,
    V3_10,
    V3_11,
    V3_12,
}

impl Release {
    /// All of them, oldest first.
    pub const ALL: [Self; 12] = [
        Self::V3_1,
        Self::V3_2,
        Self::V3_3,
        Self::V3_4,
        Self::V3_5,
        Self::V3_6,
        Self::V3_7,
        Self::V3_8,
        Self::V3_9,
        Self::V3_10,
        Self::V3_11,
        Self::V3_12,
    ];

    /// The number after `3.`.
    pub fn minor(self) -> u8 {
        self as u8
    }

    /// Compatibility levels are dotted and `==level` exists; before, a level is an integer.
    pub fn has_level_operators(self) -> bool {
        self >= Self::V3_6
    }

    /// A NUL in a configuration file is warned about.
    pub fn warns_of_nul(self) -> bool {
        self >= Self::V3_9
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "3.{}", self.minor())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_listed_in_order() {
        for (index, release) in Release::ALL.iter().enumerate() {
            assert_eq!(usize::from(release.minor()), index + 1);
        }
        assert_eq!(Release::V3_10.to_string(), "3.10");
    }
}
