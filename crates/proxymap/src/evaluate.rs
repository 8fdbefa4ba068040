//! Reading the parameters of this service from main.cf, down to the set of approved tables.
//!
//! `proxy_read_maps` refers to nearly all parameters that name tables. A reference sees what main.cf sets, and
//! the default of what this process has read before: the common parameters, and those listed here. All others
//! are empty unless main.cf sets them, so the order matters, and so does what is not in the list.
//!
//! # References
//! Postfix `src/proxymap/proxymap.c`, `main()`; postconf(5).

use postkeep_conf::{Catalog, Dictionary, Error, Release, Sink, StrParameter, split_list};

use crate::approve::{Approved, Files, List, Notice, Rules};
use crate::role::{Role, Service};

/// What every release reads first.
const FIRST: [&str; 7] = [
    "alias_maps",
    "local_recipient_maps",
    "virtual_alias_maps",
    "virtual_alias_domains",
    "virtual_mailbox_maps",
    "virtual_mailbox_domains",
    "relay_recipient_maps",
];

/// A common parameter since 3.6.
const UP_TO_3_5: [&str; 1] = ["relay_domains"];

const THEN: [&str; 5] = [
    "canonical_maps",
    "sender_canonical_maps",
    "recipient_canonical_maps",
    "relocated_maps",
    "transport_maps",
];

const REST_UP_TO_3_10: [&str; 3] = [
    "address_verify_map",
    "smtpd_sender_login_maps",
    "postscreen_cache_map",
];

const REST_SINCE_3_11: [&str; 5] = [
    "smtpd_sender_login_maps",
    "smtpd_forbidden_commands",
    "postscreen_forbidden_commands",
    "address_verify_map",
    "postscreen_cache_map",
];

/// They must be last, for the references in them to work.
const LISTS: [&str; 2] = ["proxy_read_maps", "proxy_write_maps"];

/// Read by 3.11 and later only; nothing refers to it.
const CLASSES: &str = "smtpd_restriction_classes";

/// The text parameters that this service reads after the common ones, in order.
pub fn parameters(release: Release) -> impl Iterator<Item = &'static str> {
    let none: &'static [&'static str] = &[];
    let parts: [&'static [&'static str]; 5] = [
        &FIRST,
        if release < Release::V3_6 {
            &UP_TO_3_5
        } else {
            none
        },
        &THEN,
        if release < Release::V3_11 {
            &REST_UP_TO_3_10
        } else {
            &REST_SINCE_3_11
        },
        &LISTS,
    ];
    let classes = (release >= Release::V3_11).then_some(CLASSES);
    parts.into_iter().flatten().copied().chain(classes)
}

/// Reads the parameters and collects the tables of a service.
///
/// - `dictionary`: main.cf and overrides, after the common parameters were read
/// - `rules`: the grammar, [`Rules::from`] the dictionary's release or a more generous one
/// - `files`: reads files that the lists name; used only when the grammar has them
/// - `sink`: takes warnings about expressions; those about the lists are in the result
///
/// # Errors
/// A value that cannot be expanded: fatal in the reference.
pub fn approved(
    dictionary: &mut Dictionary,
    service: Service,
    rules: Rules,
    files: &mut dyn Files,
    sink: &mut dyn Sink,
) -> Result<(Approved, Vec<Notice>), Error> {
    let release = dictionary.release();
    let catalog = Catalog::of(release);
    let mut value = Vec::new();
    let mut classes = Vec::new();
    for name in parameters(release) {
        let default = catalog.find(name).map_or("", |parameter| parameter.default);
        let (min, max) = (0, 0);
        let text = dictionary.str(
            &StrParameter {
                name,
                default,
                min,
                max,
            },
            sink,
        )?;
        if name == service.role().parameter() {
            value = text;
        } else if name == CLASSES {
            classes = text;
        }
    }
    let mut list = List::new(rules, service.listing(), files);
    list.add(&value, service.role().parameter());
    if service.role() == Role::Read {
        for class in split_list(&classes) {
            if let Some(restrictions) = dictionary.value_of(class) {
                list.add(&dictionary.expand(restrictions, sink)?, CLASSES);
            }
        }
    }
    Ok(list.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Service = Service::Serve(Role::Read);
    const WRITE: Service = Service::Serve(Role::Write);

    fn tables(release: Release, service: Service, main_cf: &str) -> Vec<String> {
        let mut dictionary = Dictionary::new(release, b"/etc/postfix");
        // What the common parameters leave behind, as far as it matters here.
        for (name, value) in [
            ("data_directory", "/var/lib/postfix"),
            ("default_cache_db_type", "lmdb"),
            ("default_database_type", "lmdb"),
            ("compatibility_level", "3.6"),
            ("mydestination", "localhost"),
        ] {
            dictionary.set(name, value.as_bytes());
        }
        let mut told = Vec::new();
        dictionary
            .load(main_cf.as_bytes(), "main.cf", &mut told)
            .unwrap();
        let rules = Rules::from(release);
        let (approved, _) = approved(&mut dictionary, service, rules, &mut (), &mut told).unwrap();
        approved
            .sorted()
            .into_iter()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    }

    #[test]
    fn with_all_defaults_one_table_is_approved() {
        for release in Release::ALL {
            assert_eq!(
                tables(release, READ, ""),
                ["unix:passwd.byname"],
                "{release}"
            );
            assert!(tables(release, WRITE, "").is_empty(), "{release}");
        }
    }

    #[test]
    fn references_see_main_cf_and_what_was_read_before() {
        let main_cf = "virtual_maps = proxy:hash:/old\n\
                       smtp_tls_policy_maps = proxy:hash:/policy\n\
                       alias_maps = proxy:hash:/aliases\n\
                       address_verify_map = proxy:btree:$data_directory/v\n";
        assert_eq!(
            tables(Release::V3_7, READ, main_cf),
            [
                "hash:/aliases",
                "hash:/old",
                "hash:/policy",
                "unix:passwd.byname"
            ]
        );
        assert_eq!(
            tables(Release::V3_7, WRITE, main_cf),
            ["btree:/var/lib/postfix/v"]
        );
    }

    #[test]
    fn defaults_of_what_is_not_read_stay_empty() {
        // smtpd_tls_loglevel_maps and the like have defaults that refer to others; nobody has read them.
        let main_cf = "smtp_tls_policy_maps = proxy:hash:/policy\n\
                       proxy_read_maps = $tlsproxy_client_policy_maps\n";
        assert!(tables(Release::V3_12, READ, main_cf).is_empty());
    }

    #[test]
    fn restriction_classes_count_since_3_11() {
        let main_cf = "smtpd_restriction_classes = one, two three\n\
                       one = check_client_access proxy:hash:/one\n\
                       two = check_sender_access $inner, permit\n\
                       inner = proxy:hash:/two\n";
        assert_eq!(
            tables(Release::V3_11, READ, main_cf),
            ["hash:/one", "hash:/two", "unix:passwd.byname"]
        );
        assert_eq!(
            tables(Release::V3_10, READ, main_cf),
            ["unix:passwd.byname"]
        );
        assert!(tables(Release::V3_11, WRITE, main_cf).is_empty());
    }

    #[test]
    fn export_of_all_tables() {
        let service = Service::from_name("export-all-proxywrite", Release::V3_12).unwrap();
        assert_eq!(
            tables(Release::V3_12, service, ""),
            [
                "lmdb:/var/lib/postfix/postscreen_cache",
                "lmdb:/var/lib/postfix/verify_cache"
            ]
        );
    }

    #[test]
    fn a_broken_expression_is_an_error() {
        let mut dictionary = Dictionary::new(Release::V3_7, b"/etc/postfix");
        dictionary.set("proxy_read_maps", b"proxy:hash:/a ${");
        let mut told = Vec::new();
        let result = approved(&mut dictionary, READ, Rules::default(), &mut (), &mut told);
        assert!(result.is_err());
        assert_eq!(told.len(), 1);
    }

    #[test]
    fn order_by_release() {
        let list = |release| parameters(release).collect::<Vec<_>>();
        assert!(list(Release::V3_5).contains(&"relay_domains"));
        assert!(!list(Release::V3_6).contains(&"relay_domains"));
        assert_eq!(list(Release::V3_10).last(), Some(&"proxy_write_maps"));
        assert_eq!(list(Release::V3_11).last(), Some(&CLASSES));
        for release in Release::ALL {
            for name in parameters(release) {
                assert!(
                    Catalog::of(release).find(name).is_some(),
                    "{name} in {release}"
                );
            }
        }
    }
}
