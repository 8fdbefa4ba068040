//! Configuration of database clients: the old form, with names made of a prefix, and files.

/// Names that a client type knows, in its file or after `PREFIX_`.
pub(super) fn known_names(kind: &[u8]) -> Option<&'static str> {
    Some(match kind {
        b"ldap" => {
            "bind bind_dn bind_pw cache cache_expiry cache_size chase_referrals debuglevel dereference domain \
             expansion_limit leaf_result_attribute query_filter recursion_limit result_attribute result_filter \
             result_format sasl_authz_id sasl_mechs sasl_minssf sasl_realm scope search_base server_host \
             server_port size_limit special_result_attribute start_tls terminal_result_attribute timeout \
             tls_ca_cert_dir tls_ca_cert_file tls_cert tls_cipher_suite tls_key tls_random_file \
             tls_require_cert version"
        }
        b"mysql" => {
            "additional_conditions dbname domain expansion_limit hosts option_file option_group password query \
             require_result_set result_format select_field table tls_CAfile tls_CApath tls_cert_file tls_ciphers \
             tls_key_file tls_verify_cert user where_field"
        }
        b"pgsql" => {
            "additional_conditions dbname domain expansion_limit hosts password query result_format select_field \
             select_function table user where_field"
        }
        b"sqlite" => {
            "additional_conditions dbpath domain expansion_limit query result_format select_field table \
             where_field"
        }
        b"memcache" => {
            "backup data_size_limit domain flags key_format line_size_limit max_try memcache retry_pause timeout \
             ttl"
        }
        _ => return None,
    })
}

/// A mention of a database client in a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mention {
    /// `TYPE:/FILE`.
    File { kind: Vec<u8>, path: Vec<u8> },
    /// `TYPE:PREFIX`.
    Prefix { kind: Vec<u8>, prefix: Vec<u8> },
    /// Braces that do not match; the text of a warning.
    Fault(String),
}

/// Braces within braces that are looked into.
const DEPTH_LIMIT: usize = 100;

/// Finds what may be names of tables of database clients. `proxy:` is skipped, braces are looked into.
pub(super) fn mentions(text: &[u8], found: &mut Vec<Mention>) {
    look_into(text, found, 0);
}

fn look_into(text: &[u8], found: &mut Vec<Mention>, depth: usize) {
    if depth > DEPTH_LIMIT {
        return;
    }
    let unbrace = |item, found: &mut Vec<Mention>| {
        let (inside, fault) = crate::text::extract_braced(item, false);
        found.extend(fault.map(Mention::Fault));
        look_into(inside, found, depth + 1);
    };
    for item in crate::text::split_list_braced(text) {
        if item.first() == Some(&b'{') {
            unbrace(item, found);
            continue;
        }
        let mut item = item;
        let (kind, rest) = loop {
            match item.iter().position(|&byte| byte == b':') {
                None => break (item, None),
                Some(colon) if &item[..colon] == b"proxy" => item = &item[colon + 1..],
                Some(colon) => break (&item[..colon], Some(&item[colon + 1..])),
            }
        };
        let Some(rest) = rest else {
            continue;
        };
        match rest.first() {
            Some(b'{') => unbrace(rest, found),
            Some(b'.') => {}
            _ if known_names(kind).is_none() => {}
            Some(b'/') => found.push(Mention::File {
                kind: kind.to_vec(),
                path: rest.to_vec(),
            }),
            _ => found.push(Mention::Prefix {
                kind: kind.to_vec(),
                prefix: rest.to_vec(),
            }),
        }
    }
}
