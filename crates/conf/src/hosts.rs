//! Host names, interfaces, and the networks that `mynetworks` has by default.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::dictionary::Dictionary;
use crate::error::Error;
use crate::sink::Sink;
use crate::text::{display, head};

const LABEL_LIMIT: usize = 63;
const NAME_LIMIT: usize = 255;

/// What is wrong with a host name; the text is the reference's warning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum HostnameFault {
    #[error("valid_hostname: empty hostname")]
    Empty,
    #[error("valid_hostname: hostname label too long: {0}")]
    LongLabel(String),
    #[error("valid_hostname: misplaced delimiter: {0}")]
    Delimiter(String),
    #[error("valid_hostname: misplaced hyphen: {0}")]
    Hyphen(String),
    #[error("valid_hostname: invalid character {0}(decimal): {1}")]
    Character(u8, String),
    #[error("valid_hostname: numeric hostname: {0}")]
    Numeric(String),
    #[error("valid_hostname: bad length {0} for {1}...")]
    Length(usize, String),
}

/// Checks the form of a host name: labels of letters, digits, `_` and inner `-`, at most 63 bytes each, joined by
/// dots, 255 bytes together, not digits and dots only.
///
/// # Errors
/// [`HostnameFault`], the first that the reference finds.
///
/// # References
/// Postfix `src/util/valid_hostname.c`.
pub fn check_hostname(name: &[u8]) -> Result<(), HostnameFault> {
    let shown = || display(head(name, 100)).into_owned();
    if name.is_empty() {
        return Err(HostnameFault::Empty);
    }
    let mut label = 0;
    let mut numeric = true;
    for (at, &byte) in name.iter().enumerate() {
        let next = name.get(at + 1);
        match byte {
            b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                label += 1;
                if label > LABEL_LIMIT {
                    return Err(HostnameFault::LongLabel(shown()));
                }
                numeric &= byte.is_ascii_digit();
            }
            b'.' => {
                if label == 0 || next.is_none() {
                    return Err(HostnameFault::Delimiter(shown()));
                }
                label = 0;
            }
            b'-' => {
                numeric = false;
                label += 1;
                if label == 1 || matches!(next, None | Some(b'.')) {
                    return Err(HostnameFault::Hyphen(shown()));
                }
            }
            _ => return Err(HostnameFault::Character(byte, shown())),
        }
    }
    if numeric {
        return Err(HostnameFault::Numeric(shown()));
    }
    if name.len() > NAME_LIMIT {
        return Err(HostnameFault::Length(name.len(), shown()));
    }
    Ok(())
}

/// The default of `myhostname`: the machine's own name, with a domain when it has none.
pub(crate) fn default_host_name(
    dictionary: &Dictionary,
    host_name: &[u8],
    sink: &mut dyn Sink,
) -> Result<Vec<u8>, Error> {
    let mut name = host_name.to_vec();
    if !name.contains(&b'.') {
        let domain = dictionary.evaluate("mydomain", sink)?;
        name.push(b'.');
        name.extend_from_slice(domain.as_deref().unwrap_or(b"localdomain"));
    }
    Ok(name)
}

/// The default of `mydomain`, given `myhostname`.
pub(crate) fn domain_of(host_name: &[u8]) -> &[u8] {
    match host_name.iter().position(|&byte| byte == b'.') {
        Some(dot) => &host_name[dot + 1..],
        None => b"localdomain",
    }
}

/// An address of this machine and the length of its network part in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network part.
    pub prefix: u8,
}

/// Which families `inet_protocols` allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Families {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl Families {
    /// Reads `inet_protocols`.
    pub(crate) fn parse(value: &[u8]) -> Result<Self, Error> {
        let mut families = Self {
            ipv4: false,
            ipv6: false,
        };
        for word in crate::text::split_list(value) {
            match word {
                b"all" => {
                    families = Self {
                        ipv4: true,
                        ipv6: true,
                    }
                }
                b"ipv4" => families.ipv4 = true,
                b"ipv6" => families.ipv6 = true,
                _ => return Err(unknown_word("inet_protocols", word, value)),
            }
        }
        Ok(families)
    }

    pub(crate) fn allow(self, address: IpAddr) -> bool {
        if address.is_ipv4() {
            self.ipv4
        } else {
            self.ipv6
        }
    }

    fn none(self) -> bool {
        !self.ipv4 && !self.ipv6
    }
}

fn unknown_word(what: &str, word: &[u8], value: &[u8]) -> Error {
    Error::Setting(format!(
        "unknown {what} value \"{}\" in \"{}\"",
        display(word),
        display(value)
    ))
}

/// Finds the addresses of a host name; none when there is no such host.
pub type Resolve<'a> = &'a dyn Fn(&[u8]) -> Vec<IpAddr>;

/// The addresses that `inet_interfaces` chooses. Without a list of interfaces nothing can be chosen or faulted;
/// without a resolver, names are left out.
pub(crate) fn own_addresses(
    inet_interfaces: &[u8],
    families: Families,
    interfaces: &[Interface],
    resolve: Option<Resolve<'_>>,
) -> Result<Vec<Interface>, Error> {
    if families.none() {
        return Ok(Vec::new());
    }
    let local = interfaces
        .iter()
        .copied()
        .filter(|interface| families.allow(interface.address));
    match inet_interfaces {
        b"all" => return Ok(local.collect()),
        b"loopback-only" => {
            return Ok(local
                .filter(|interface| interface.address.is_loopback())
                .collect());
        }
        _ => {}
    }
    let mut own: Vec<Interface> = Vec::new();
    let hosts = inet_interfaces.split(|byte| b" \t,".contains(byte));
    for host in hosts.filter(|host| !host.is_empty()) {
        let found = match (parse_address(host), resolve) {
            (Some(address), _) => vec![address],
            (None, Some(resolve)) => resolve(host),
            (None, None) => continue,
        };
        let found: Vec<_> = found
            .into_iter()
            .filter(|&address| families.allow(address))
            .collect();
        if found.is_empty() {
            return Err(Error::Setting(format!(
                "config variable inet_interfaces: host not found: {}",
                display(host)
            )));
        }
        for address in found {
            if own.iter().all(|known| known.address != address) {
                own.push(Interface { address, prefix: 0 });
            }
        }
    }
    if interfaces.is_empty() {
        return Ok(own);
    }
    for chosen in &mut own {
        let Some(known) = local.clone().find(|known| known.address == chosen.address) else {
            return Err(Error::Setting(format!(
                "parameter inet_interfaces: no local interface found for {}",
                chosen.address
            )));
        };
        chosen.prefix = known.prefix;
    }
    Ok(own)
}

/// An address as configuration writes it: plain, or in brackets, there also with `IPv6:` before it.
pub(crate) fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let Some(inside) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    else {
        return text.parse().ok();
    };
    match inside.get(..5) {
        Some(prefix) if prefix.eq_ignore_ascii_case("ipv6:") => {
            inside[5..].parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        }
        _ => inside.parse().ok(),
    }
}

/// The default of `mynetworks`: patterns separated by blanks, each followed by one.
///
/// # References
/// postconf(5) `mynetworks_style`; Postfix `src/global/mynetworks.c`.
pub(crate) fn default_networks(
    style: &[u8],
    families: Families,
    own: &[Interface],
) -> Result<Vec<u8>, Error> {
    if families.none() {
        return Ok(Vec::new());
    }
    let mut chosen: Vec<&[u8]> = Vec::new();
    for word in crate::text::split_list(style) {
        if !matches!(word, b"class" | b"subnet" | b"host") {
            return Err(unknown_word("mynetworks mask style", word, style));
        }
        if !chosen.contains(&word) {
            chosen.push(word);
        }
    }
    let [style] = chosen[..] else {
        return Err(Error::Setting(format!(
            "bad mynetworks_style value: {}; specify exactly one value",
            display(style)
        )));
    };
    let mut patterns: Vec<String> = Vec::new();
    for interface in own {
        let pattern = match interface.address {
            IpAddr::V4(address) => {
                let prefix = match (style, address.octets()[0]) {
                    (b"host", _) => 32,
                    (b"subnet", _) => interface.prefix.min(32),
                    (_, 0..128) => 8,
                    (_, 128..192) => 16,
                    (_, 192..224) => 24,
                    (_, 224..240) => 4,
                    _ => {
                        return Err(Error::Setting(format!(
                            "mynetworks_core: unknown address class: {address}"
                        )));
                    }
                };
                let mask = u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
                format!(
                    "{}/{prefix} ",
                    Ipv4Addr::from_bits(address.to_bits() & mask)
                )
            }
            IpAddr::V6(address) => {
                let prefix = if style == b"host" {
                    128
                } else {
                    interface.prefix.min(128)
                };
                let mask = u128::MAX.checked_shl(u32::from(128 - prefix)).unwrap_or(0);
                format!(
                    "[{}]/{prefix} ",
                    Ipv6Addr::from_bits(address.to_bits() & mask)
                )
            }
        };
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    Ok(patterns.concat().into_bytes())
}

/// What is wrong with `known_tcp_ports`: warnings, one per association.
///
/// # References
/// Postfix `src/global/config_known_tcp_ports.c`.
pub(crate) fn check_known_tcp_ports(settings: &[u8]) -> Vec<String> {
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut known: Vec<&[u8]> = Vec::new();
    let mut warnings = Vec::new();
    for association in settings
        .split(|&byte| byte == b',')
        .filter(|part| !part.is_empty())
    {
        let words = |part: &'_ [u8]| -> Vec<Vec<u8>> {
            part.split(|&byte| crate::text::is_blank(byte))
                .filter(|word| !word.is_empty())
                .map(<[u8]>::to_vec)
                .collect()
        };
        let parts: Vec<&[u8]> = association.split(|&byte| byte == b'=').collect();
        let shown = display(association);
        let [names @ .., port] = &parts[..] else {
            continue;
        };
        if names.is_empty() {
            warnings.push(format!(
                "known_tcp_ports: in \"{shown}\" is not in \"name = value\" form"
            ));
            continue;
        }
        let port = words(port);
        let mut fault = match port.len() {
            0 => Some("missing port value after \"=\""),
            1 => None,
            _ => Some("whitespace in port number"),
        };
        if fault.is_none() {
            for name in names {
                let found = match words(name).len() {
                    0 => Some("missing service name before \"=\""),
                    1 => {
                        let name = crate::text::trim(name, crate::text::is_blank);
                        if digits(name) {
                            Some("numerical service name")
                        } else if !digits(&port[0]) {
                            Some("non-numerical service port")
                        } else if known.contains(&name) {
                            Some("duplicate service name")
                        } else {
                            known.push(name);
                            None
                        }
                    }
                    _ => Some("whitespace in service name"),
                };
                fault = fault.or(found);
            }
        }
        if let Some(fault) = fault {
            warnings.push(format!("known_tcp_ports: in \"{shown}\": {fault}"));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Families = Families {
        ipv4: true,
        ipv6: true,
    };

    #[test]
    fn host_names() {
        let fault = |name: &str| check_hostname(name.as_bytes()).unwrap_err().to_string();
        assert_eq!(check_hostname(b"a_b.x-y.1"), Ok(()));
        assert_eq!(
            fault("bad_host!name"),
            "valid_hostname: invalid character 33(decimal): bad_host!name"
        );
        assert_eq!(fault(".x"), "valid_hostname: misplaced delimiter: .x");
        assert_eq!(fault("x."), "valid_hostname: misplaced delimiter: x.");
        assert_eq!(fault("a..b"), "valid_hostname: misplaced delimiter: a..b");
        assert_eq!(fault("a.-b"), "valid_hostname: misplaced hyphen: a.-b");
        assert_eq!(
            fault("1.2.3.4"),
            "valid_hostname: numeric hostname: 1.2.3.4"
        );
        assert_eq!(fault(""), "valid_hostname: empty hostname");
        let long = "x".repeat(64);
        assert_eq!(
            fault(&long),
            format!("valid_hostname: hostname label too long: {long}")
        );
    }

    #[test]
    fn networks() {
        let interface = |address: &str, prefix| Interface {
            address: address.parse().unwrap(),
            prefix,
        };
        let own = [
            interface("127.0.0.1", 8),
            interface("192.0.2.9", 25),
            interface("192.0.2.10", 25),
            interface("::1", 128),
            interface("2001:db8::5", 64),
        ];
        let networks = |style: &str| {
            default_networks(style.as_bytes(), BOTH, &own)
                .map(|text| String::from_utf8(text).unwrap())
        };
        assert_eq!(
            networks("subnet").unwrap(),
            "127.0.0.0/8 192.0.2.0/25 [::1]/128 [2001:db8::]/64 "
        );
        assert_eq!(
            networks("class").unwrap(),
            "127.0.0.0/8 192.0.2.0/24 [::1]/128 [2001:db8::]/64 "
        );
        assert_eq!(
            networks("host").unwrap(),
            "127.0.0.1/32 192.0.2.9/32 192.0.2.10/32 [::1]/128 [2001:db8::5]/128 "
        );
        assert_eq!(
            networks("host class").unwrap_err().to_string(),
            "bad mynetworks_style value: host class; specify exactly one value"
        );
    }

    #[test]
    fn addresses_must_be_local() {
        let local = [Interface {
            address: Ipv4Addr::LOCALHOST.into(),
            prefix: 8,
        }];
        assert_eq!(
            own_addresses(b"[127.0.0.1], 127.0.0.1", BOTH, &local, None),
            Ok(local.to_vec())
        );
        assert_eq!(
            own_addresses(b"192.0.2.1", BOTH, &local, None)
                .unwrap_err()
                .to_string(),
            "parameter inet_interfaces: no local interface found for 192.0.2.1"
        );
        assert_eq!(
            own_addresses(b"x", BOTH, &local, Some(&|_| Vec::new()))
                .unwrap_err()
                .to_string(),
            "config variable inet_interfaces: host not found: x"
        );
    }

    #[test]
    fn known_ports() {
        assert!(check_known_tcp_ports(b"lmtp=24, smtp=25, smtps=submissions=465").is_empty());
        assert_eq!(
            check_known_tcp_ports(b"foo, =1, a=, a b=1, a=1 2, 1=2, a=b, c=1, c=2"),
            [
                "known_tcp_ports: in \"foo\" is not in \"name = value\" form",
                "known_tcp_ports: in \" =1\": missing service name before \"=\"",
                "known_tcp_ports: in \" a=\": missing port value after \"=\"",
                "known_tcp_ports: in \" a b=1\": whitespace in service name",
                "known_tcp_ports: in \" a=1 2\": whitespace in port number",
                "known_tcp_ports: in \" 1=2\": numerical service name",
                "known_tcp_ports: in \" a=b\": non-numerical service port",
                "known_tcp_ports: in \" c=2\": duplicate service name",
            ]
        );
    }
}
