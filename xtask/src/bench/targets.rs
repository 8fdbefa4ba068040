//! The rows, and what they are to reach.

use std::fmt;

/// All rows, in the order in which they are measured and listed.
pub(crate) const ROWS: &[&str] = &[
    "lookup inline",
    "lookup texthash",
    "lookup cdb",
    "lookup lmdb",
    "lookup hash",
    "update lmdb",
    "update hash",
    "update btree",
    "pattern pcre 2000 late",
    "pattern pcre 2000 never",
    "pattern regexp 2000 late",
    "pattern regexp 2000 never",
    "pattern cidr 5000 late",
    "pattern cidr 5000 never",
    "pattern cidr 20000 late",
    "pattern cidr 20000 never",
    "slow table",
    "fast beside slow",
    "scache cycle",
    "scache save",
    "scache expiry",
    "scache full",
    "memory",
    "start",
];

/// A number that the rows tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    LatencyToPostfix,
    LatencyToBound,
    RateToPostfix,
    RateToBound,
    CostToPostfix,
    TailToMedian,
    CostToFewRules,
    RateToIdeal,
    Loss,
    SaveAtThousand,
    SaveAtNineteenThousand,
    SaveGrowth,
    MemoryPerDescriptor,
    ExpiryTail,
    TailGrowth,
    ExpiryDelay,
    WatchMemory,
    WatchCost,
    ResidentToPostfix,
    StartToPostfix,
}

impl Measure {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::LatencyToPostfix => "median latency, ours / Postfix",
            Self::LatencyToBound => "median latency, ours / bound",
            Self::RateToPostfix => "rate, ours / Postfix",
            Self::RateToBound => "rate, ours / bound",
            Self::CostToPostfix => "processor time of one, ours / Postfix",
            Self::TailToMedian => "latency, p99.9 / median of ours",
            Self::CostToFewRules => "processor time of one, all rules / 10 rules",
            Self::RateToIdeal => "rate, ours / ideal",
            Self::Loss => "part of ours that the slow client takes",
            Self::SaveAtThousand => "processor time at 1,000, ours / Postfix",
            Self::SaveAtNineteenThousand => "processor time at 19,000, ours / Postfix",
            Self::SaveGrowth => "ours at 19,000 and 1,000, larger / smaller",
            Self::MemoryPerDescriptor => "memory of a descriptor, ours / Postfix",
            Self::ExpiryTail => "p99.9 of ms early or late, ours",
            Self::TailGrowth => "p99 of a find or save, 19,000 / 100 sessions",
            Self::ExpiryDelay => "ms that a find is delayed when all expire",
            Self::WatchMemory => "bytes that liveness adds to a session",
            Self::WatchCost => "us that liveness adds to a session",
            Self::ResidentToPostfix => "memory, ours / all of Postfix's",
            Self::StartToPostfix => "time to the first answer, ours / Postfix",
        }
    }
}

/// What a number is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(formatter, "<= {limit}"),
            Self::AtLeast(limit) => write!(formatter, ">= {limit}"),
        }
    }
}

/// What rows are to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// What the names of the rows begin with.
    pub(crate) row: &'static str,
    /// Numbers of clients; none means all.
    pub(crate) clients: &'static [usize],
    pub(crate) measure: Measure,
    pub(crate) limit: Limit,
}

const fn target(
    row: &'static str,
    clients: &'static [usize],
    measure: Measure,
    limit: Limit,
) -> Target {
    Target {
        row,
        clients,
        measure,
        limit,
    }
}

use Limit::{AtLeast, AtMost};
use Measure as M;

/// What each later change is judged by.
pub(crate) const TARGETS: &[Target] = &[
    target("lookup ", &[1], M::LatencyToPostfix, AtMost(0.65)),
    target("lookup ", &[1], M::LatencyToBound, AtMost(1.2)),
    target("lookup ", &[8, 64, 512], M::RateToPostfix, AtLeast(3.0)),
    target("lookup ", &[8, 64], M::CostToPostfix, AtMost(0.35)),
    target("lookup ", &[8, 64], M::RateToBound, AtLeast(0.85)),
    target("lookup ", &[512], M::RateToBound, AtLeast(0.8)),
    target("lookup ", &[512], M::TailToMedian, AtMost(2.0)),
    target("update ", &[1], M::RateToPostfix, AtLeast(1.0)),
    target("update ", &[64], M::RateToPostfix, AtLeast(8.0)),
    target("pattern ", &[], M::CostToFewRules, AtMost(1.5)),
    target("slow table", &[], M::RateToPostfix, AtLeast(60.0)),
    target("slow table", &[], M::RateToIdeal, AtLeast(0.95)),
    target("fast beside slow", &[], M::Loss, AtMost(0.1)),
    target("scache cycle", &[1], M::RateToPostfix, AtLeast(1.35)),
    target("scache cycle", &[1], M::RateToBound, AtLeast(0.9)),
    target("scache cycle", &[8, 64], M::RateToPostfix, AtLeast(8.0)),
    target("scache cycle", &[8, 64], M::RateToBound, AtLeast(0.85)),
    target("scache save", &[], M::SaveAtThousand, AtMost(0.3)),
    target("scache save", &[], M::SaveAtNineteenThousand, AtMost(0.02)),
    target("scache save", &[], M::SaveGrowth, AtMost(1.2)),
    target("scache save", &[], M::MemoryPerDescriptor, AtMost(0.5)),
    target("scache expiry", &[], M::ExpiryTail, AtMost(20.0)),
    target("scache full", &[], M::TailGrowth, AtMost(2.0)),
    target("scache full", &[], M::ExpiryDelay, AtMost(10.0)),
    target("scache full", &[], M::WatchMemory, AtMost(100.0)),
    target("scache full", &[], M::WatchCost, AtMost(1.0)),
    target("memory", &[], M::ResidentToPostfix, AtMost(1.0)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_for_a_row() {
        for target in TARGETS {
            assert!(
                ROWS.iter().any(|row| row.starts_with(target.row)),
                "{target:?}"
            );
        }
    }
}
