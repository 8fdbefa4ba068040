//! The built-in parameters of each release: name, type, limits, default.
//!
//! `parameters.tsv` has a row per parameter and range of releases in which it did not change: name, type, first
//! and last minor release, origin of the default, minimum, maximum, default. The defaults are those of the
//! latest patch of each release, in a Debian build where they depend on the build.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::release::Release;

/// How a parameter is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text, expanded.
    Str,
    /// Text, not expanded.
    Raw,
    /// Integer of 32 bits.
    Int,
    /// Integer of 64 bits.
    Long,
    /// Integer with an expression as default.
    Nint,
    /// `yes` or `no`.
    Bool,
    /// `yes` or `no`, with an expression as default.
    Nbool,
    /// Time with a unit.
    Time,
    /// Text whose default is worked out when the program starts.
    Function,
    /// A name of the past, known so that it can still be referred to.
    Legacy,
}

/// Where a default comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The same in every build.
    Fixed,
    /// Differs between builds.
    Build,
    /// Depends on the machine; [`Parameter::default`] is empty.
    Machine,
}

/// One built-in parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// How it is read.
    pub kind: Kind,
    /// Least value, or least length for texts; zero: no limit.
    pub min: i64,
    /// Greatest value or length; zero: no limit.
    pub max: i64,
    /// Unexpanded default.
    pub default: &'static str,
    /// What the default depends on.
    pub origin: Origin,
}

/// All built-in parameters of one release, without the read-only `process_name`, `service_name` and
/// `process_id`.
///
/// # References
/// postconf(5); Postfix `src/global/mail_params.h`.
#[derive(Debug)]
pub struct Catalog {
    parameters: BTreeMap<&'static str, Parameter>,
}

static CATALOGS: LazyLock<Vec<Catalog>> = LazyLock::new(|| {
    let rows: Vec<_> = include_str!("parameters.tsv")
        .lines()
        .filter_map(parse_row)
        .collect();
    Release::ALL
        .iter()
        .map(|release| Catalog {
            parameters: rows
                .iter()
                .filter(|(first, last, _)| (*first..=*last).contains(&release.minor()))
                .map(|&(_, _, parameter)| (parameter.name, parameter))
                .collect(),
        })
        .collect()
});

fn parse_row(row: &'static str) -> Option<(u8, u8, Parameter)> {
    let mut fields = row.split('\t');
    let name = fields.next()?;
    let kind = match fields.next()? {
        "str" => Kind::Str,
        "raw" => Kind::Raw,
        "int" => Kind::Int,
        "long" => Kind::Long,
        "nint" => Kind::Nint,
        "bool" => Kind::Bool,
        "nbool" => Kind::Nbool,
        "time" => Kind::Time,
        "function" => Kind::Function,
        "legacy" => Kind::Legacy,
        _ => return None,
    };
    let first = fields.next()?.parse().ok()?;
    let last = fields.next()?.parse().ok()?;
    let origin = match fields.next()? {
        "-" => Origin::Fixed,
        "b" => Origin::Build,
        "h" => Origin::Machine,
        _ => return None,
    };
    let min = fields.next()?.parse().ok()?;
    let max = fields.next()?.parse().ok()?;
    let parameter = Parameter {
        name,
        kind,
        min,
        max,
        default: fields.next()?,
        origin,
    };
    Some((first, last, parameter))
}

impl Catalog {
    /// The parameters of a release.
    pub fn of(release: Release) -> &'static Self {
        &CATALOGS[usize::from(release.minor()) - 1]
    }

    /// The parameter of this name.
    pub fn find(&self, name: &str) -> Option<&Parameter> {
        self.parameters.get(name)
    }

    /// All parameters, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.values()
    }
}

/// Parameters that exist for each delivery transport of master.cf, named after the service: suffix, and the
/// parameter that the default refers to.
pub(crate) const TRANSPORT_PARAMETERS: [(&str, &str); 16] = [
    ("_recipient_limit", "default_recipient_limit"),
    ("_extra_recipient_limit", "default_extra_recipient_limit"),
    ("_recipient_refill_limit", "default_recipient_refill_limit"),
    ("_recipient_refill_delay", "default_recipient_refill_delay"),
    ("_delivery_slot_cost", "default_delivery_slot_cost"),
    ("_delivery_slot_loan", "default_delivery_slot_loan"),
    ("_delivery_slot_discount", "default_delivery_slot_discount"),
    ("_minimum_delivery_slots", "default_minimum_delivery_slots"),
    (
        "_initial_destination_concurrency",
        "initial_destination_concurrency",
    ),
    (
        "_destination_concurrency_limit",
        "default_destination_concurrency_limit",
    ),
    (
        "_destination_recipient_limit",
        "default_destination_recipient_limit",
    ),
    (
        "_destination_concurrency_positive_feedback",
        "default_destination_concurrency_positive_feedback",
    ),
    (
        "_destination_concurrency_negative_feedback",
        "default_destination_concurrency_negative_feedback",
    ),
    (
        "_destination_concurrency_failed_cohort_limit",
        "default_destination_concurrency_failed_cohort_limit",
    ),
    ("_destination_rate_delay", "default_destination_rate_delay"),
    ("_transport_rate_delay", "default_transport_rate_delay"),
];

/// The parameter of each pipe and spawn service.
pub(crate) const TIME_LIMIT: (&str, &str) = ("_time_limit", "command_time_limit");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_read() {
        for row in include_str!("parameters.tsv").lines() {
            assert!(parse_row(row).is_some(), "{row}");
        }
    }

    #[test]
    fn defaults_follow_the_release() {
        let count = |release| {
            let parameter = Catalog::of(release).find("proxy_read_maps").unwrap();
            parameter.default.split(' ').count()
        };
        assert_eq!(count(Release::V3_1), 46);
        assert_eq!(count(Release::V3_7), 78);
        assert_eq!(count(Release::V3_11), 103);
        assert_eq!(count(Release::V3_12), 107);
        let default = |release, name| {
            Catalog::of(release)
                .find(name)
                .map(|parameter| parameter.default)
        };
        assert_eq!(default(Release::V3_3, "maillog_file"), None);
        assert_eq!(default(Release::V3_4, "maillog_file"), Some(""));
        assert_eq!(default(Release::V3_10, "default_cache_db_type"), None);
        assert_eq!(
            default(Release::V3_5, "smtputf8_enable"),
            Some("${{$compatibility_level} < {1} ? {no} : {yes}}")
        );
    }

    #[test]
    fn transports_refer_to_parameters() {
        let catalog = Catalog::of(Release::V3_7);
        for (_, default) in TRANSPORT_PARAMETERS.into_iter().chain([TIME_LIMIT]) {
            assert!(catalog.find(default).is_some(), "{default}");
        }
    }
}
