//! master.cf as master(8) reads it: entries, endpoints, and the command lines of services.
//!
//! A wrong entry is a fault of the whole file, as in the reference.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::Error;
use crate::hosts::{Families, Resolve, check_hostname, parse_address};
use crate::level::CompatibilityLevel;
use crate::lines::LogicalLines;
use crate::release::Release;
use crate::sink::Sink;
use crate::text::{
    display, extract_braced, is_blank, parse_number, split_list, take_braced, take_item,
};

/// Finds the port of a TCP service name.
pub type PortOf<'a> = &'a dyn Fn(&[u8]) -> Option<u16>;

/// What the meaning of entries depends on.
#[derive(Clone, Copy)]
pub struct MasterContext<'a> {
    /// What messages call the file: `DIRECTORY/master.cf`.
    pub file: &'a str,
    /// Decides about warnings of NUL.
    pub release: Release,
    /// `default_process_limit`, for entries that leave the limit open.
    pub default_process_limit: i32,
    /// Below 1 entries that leave it open run in a chroot, which is told.
    pub compatibility_level: CompatibilityLevel,
    /// `inet_protocols`.
    pub inet_protocols: &'a [u8],
    /// `inet_interfaces` is `all`: services without an address listen everywhere.
    pub listens_everywhere: bool,
    /// The addresses that `inet_interfaces` chooses otherwise.
    pub own_addresses: &'a [IpAddr],
    /// `master_service_disable`.
    pub disabled: &'a [u8],
    /// Finds the addresses of host names in entries; without it such entries are faults.
    pub resolve: Option<Resolve<'a>>,
    /// Finds the port of a service name; without it names stay as they are.
    pub port_of: Option<PortOf<'a>>,
}

/// How clients reach a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP socket.
    Inet,
    /// A stream socket in the file system.
    Unix,
    /// A datagram socket in the file system.
    UnixDatagram,
    /// A named pipe.
    Fifo,
    /// A stream socket in the file system over which open connections are passed.
    Pass,
}

impl Transport {
    fn parse(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"inet" => Self::Inet,
            b"unix" => Self::Unix,
            b"unix-dgram" => Self::UnixDatagram,
            b"fifo" => Self::Fifo,
            b"pass" => Self::Pass,
            _ => return None,
        })
    }

    /// The word in master.cf and after `-t`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Unix => "unix",
            Self::UnixDatagram => "unix-dgram",
            Self::Fifo => "fifo",
            Self::Pass => "pass",
        }
    }
}

/// An entry of master.cf.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of master.cf")]
pub struct Entry {
    /// First physical line of the entry.
    pub line: usize,
    /// The service as written.
    pub name: Vec<u8>,
    /// How clients reach it.
    pub transport: Transport,
    /// `private/NAME` or `public/NAME` under the queue directory; for a TCP socket the port, or `[HOST]:PORT`.
    pub endpoint: Vec<u8>,
    /// Addresses of a TCP socket; empty for the others.
    pub addresses: Vec<IpAddr>,
    /// Port or service name of a TCP socket.
    pub port: Vec<u8>,
    /// Not for other users.
    pub private: bool,
    /// Runs as `mail_owner`.
    pub unprivileged: bool,
    /// Runs in the queue directory.
    pub chroot: bool,
    /// Seconds between wake-up calls; zero: none.
    pub wakeup: i32,
    /// Woken up only after it was used.
    pub wakeup_when_used: bool,
    /// Most processes at a time; zero: no limit.
    pub process_limit: i32,
    /// Program in the daemon directory.
    pub command: Vec<u8>,
    /// What follows the command, braces taken off.
    pub arguments: Vec<Vec<u8>>,
}

impl Entry {
    /// Number of sockets that a process inherits.
    pub fn listeners(&self) -> usize {
        match self.transport {
            Transport::Inet => self.addresses.len(),
            _ => 1,
        }
    }

    /// No remote client can reach the service. A `pass` service is taken to have remote clients.
    pub fn is_local_only(&self) -> bool {
        match self.transport {
            Transport::Inet => self.addresses.iter().all(IpAddr::is_loopback),
            Transport::Pass => false,
            _ => true,
        }
    }

    /// The argument vector of a process.
    ///
    /// - `detached`: master runs in the background
    /// - `verbose`: master was started with `-v`
    /// - `stress`: the service reached its process limit lately
    pub fn argv(&self, detached: bool, verbose: bool, stress: bool) -> Vec<Vec<u8>> {
        let mut argv = vec![self.command.clone()];
        let mut add = |word: &[u8]| argv.push(word.to_vec());
        match self.process_limit {
            0 => add(b"-z"),
            1 => add(b"-l"),
            _ => {}
        }
        let program = self
            .command
            .rsplit(|&byte| byte == b'/')
            .next()
            .unwrap_or_default();
        if program != self.name {
            add(b"-n");
            add(&self.name);
        }
        add(b"-t");
        add(self.transport.name().as_bytes());
        for (given, option) in [
            (!detached, b"-d"),
            (verbose, b"-v"),
            (self.unprivileged, b"-u"),
            (self.chroot, b"-c"),
        ] {
            if given {
                add(option);
            }
        }
        if !self.is_local_only() && self.process_limit > 1 {
            add(b"-o");
            add(if stress { b"stress=yes" } else { b"stress=" });
        }
        if self.listeners() > 1 {
            add(b"-s");
            add(self.listeners().to_string().as_bytes());
        }
        argv.extend(self.arguments.iter().cloned());
        argv
    }
}

/// Reads all entries that are not disabled. Of two entries with one endpoint the later one is used, in the place
/// of the earlier.
///
/// # Errors
/// [`Error::Master`], the first fault.
///
/// # References
/// master(5); Postfix `src/master/master_ent.c`, `src/master/master_conf.c`.
pub fn parse(
    text: &[u8],
    context: &MasterContext<'_>,
    sink: &mut dyn Sink,
) -> Result<Vec<Entry>, Error> {
    let families = Families::parse(context.inet_protocols)?;
    let mut entries: Vec<Entry> = Vec::new();
    let mut lines = LogicalLines::new(text);
    while let Some(line) = lines.read(context.file, context.release, sink) {
        let fields = Fields {
            rest: line.text_to_nul(),
            line: line.first,
            context,
        };
        let Some(entry) = fields.entry(families, sink)? else {
            continue;
        };
        let same = |known: &&mut Entry| {
            known.transport == entry.transport && known.endpoint == entry.endpoint
        };
        match entries.iter_mut().find(same) {
            Some(known) => {
                sink.warning(format!(
                    "duplicate master.cf entry for service \"{}\" ({}) -- using the last entry",
                    display(&known.name),
                    display(&known.endpoint)
                ));
                *known = entry;
            }
            None => entries.push(entry),
        }
    }
    Ok(entries)
}

/// Endpoint, addresses and port.
type InetEndpoint = (Vec<u8>, Vec<IpAddr>, Vec<u8>);

/// Takes fields off a logical line.
struct Fields<'t, 'c> {
    rest: &'t [u8],
    line: usize,
    context: &'c MasterContext<'c>,
}

impl<'t> Fields<'t, '_> {
    fn fault<T>(&self, text: String) -> Result<T, Error> {
        Err(Error::Master {
            file: self.context.file.to_owned(),
            line: self.line,
            text,
        })
    }

    /// The next field; `None` for the default.
    fn next(&mut self, field: &str) -> Result<Option<&'t [u8]>, Error> {
        match take_item(&mut self.rest, is_blank) {
            None => self.fault(format!("missing \"{field}\" field")),
            Some(b"-") => Ok(None),
            Some(word) => Ok(Some(word)),
        }
    }

    fn needed(&mut self, field: &str) -> Result<&'t [u8], Error> {
        match self.next(field)? {
            Some(word) => Ok(word),
            None => self.fault(format!("field \"{field}\" has no default value")),
        }
    }

    fn bad_value<T>(&self, field: &str, value: &[u8]) -> Result<T, Error> {
        self.fault(format!(
            "field \"{field}\": bad value: \"{}\"",
            display(value)
        ))
    }

    fn flag(&mut self, field: &str) -> Result<Option<bool>, Error> {
        match self.next(field)? {
            None => Ok(None),
            Some(b"y") => Ok(Some(true)),
            Some(b"n") => Ok(Some(false)),
            Some(word) => self.bad_value(field, word),
        }
    }

    /// A number and the field it was read from. What follows the digits is ignored.
    fn number(&mut self, field: &str) -> Result<Option<(i32, &'t [u8])>, Error> {
        match self.next(field)? {
            None => Ok(None),
            Some(word) if word.first().is_some_and(u8::is_ascii_digit) => {
                match i32::try_from(parse_number(word).value) {
                    Ok(number) => Ok(Some((number, word))),
                    Err(_) => self.bad_value(field, word),
                }
            }
            Some(word) => self.bad_value(field, word),
        }
    }

    /// The entry, unless it is disabled.
    fn entry(mut self, families: Families, sink: &mut dyn Sink) -> Result<Option<Entry>, Error> {
        let Some(name) = take_item(&mut self.rest, is_blank) else {
            return Ok(None);
        };
        let word = self.needed("transport type")?;
        if is_disabled(self.context.disabled, name, word) {
            return Ok(None);
        }
        let Some(transport) = Transport::parse(word) else {
            return self.fault(format!("bad transport type: {}", display(word)));
        };
        let inet = match transport {
            Transport::Inet => Some(self.inet_endpoint(name, families)?),
            _ => None,
        };
        let private = self.flag("private")?.unwrap_or(true);
        let (endpoint, addresses, port) = match inet {
            Some(_) if private => return self.fault("inet service cannot be private".to_owned()),
            Some((_, addresses, _)) if addresses.is_empty() => {
                return self.fault(format!("no valid IP address found: {}", display(name)));
            }
            Some(inet) => inet,
            None => {
                let class: &[u8] = if private { b"private/" } else { b"public/" };
                ([class, name].concat(), Vec::new(), Vec::new())
            }
        };
        let unprivileged = self.flag("unprivileged")?.unwrap_or(true);
        let backwards = self.context.compatibility_level < CompatibilityLevel::new(1, 0, 0);
        let chroot = self.flag("chroot")?;
        if chroot.is_none() && backwards {
            sink.info(format!(
                "{}: line {}: using backwards-compatible default setting chroot=y",
                self.context.file, self.line
            ));
        }
        let (wakeup, wakeup_word) = self.number("wakeup_time")?.unwrap_or((0, b""));
        let process_limit = match self.number("max_proc")? {
            Some((limit, _)) => limit,
            None => self.context.default_process_limit,
        };
        let command = self.needed("command")?.to_vec();
        let mut arguments = Vec::new();
        while let Some(word) = take_braced(&mut self.rest, is_blank) {
            if word.first() != Some(&b'{') {
                arguments.push(word.to_vec());
                continue;
            }
            match extract_braced(word, true) {
                (inside, None) => arguments.push(inside.to_vec()),
                (_, Some(fault)) => return self.fault(fault),
            }
        }
        Ok(Some(Entry {
            line: self.line,
            name: name.to_vec(),
            transport,
            endpoint,
            addresses,
            port,
            private,
            unprivileged,
            chroot: chroot.unwrap_or(backwards),
            wakeup,
            wakeup_when_used: wakeup > 0 && wakeup_word.ends_with(b"?"),
            process_limit,
            command,
            arguments,
        }))
    }

    /// Endpoint, addresses and port of `port`, `host:port` or `[address]:port`.
    fn inet_endpoint(&self, name: &[u8], families: Families) -> Result<InetEndpoint, Error> {
        let (host, port) = match split_host_port(name) {
            Ok(parts) => parts,
            Err(why) => return self.fault(format!("{why} in \"{}\"", display(name))),
        };
        let mut addresses = Vec::new();
        if host.is_empty() && self.context.listens_everywhere {
            addresses.extend(families.ipv4.then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
            addresses.extend(families.ipv6.then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        } else if host.is_empty() {
            addresses.extend_from_slice(self.context.own_addresses);
        } else {
            let found = match (parse_address(host), self.context.resolve) {
                (Some(address), _) => vec![address],
                (None, Some(resolve)) => resolve(host),
                (None, None) => Vec::new(),
            };
            for address in found.into_iter().filter(|&address| families.allow(address)) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                return self.fault(format!(
                    "bad hostname or network address: {}",
                    display(name)
                ));
            }
        }
        let number = match std::str::from_utf8(port)
            .ok()
            .and_then(|port| port.parse::<u16>().ok())
        {
            Some(number) => Some(number),
            None => self.context.port_of.and_then(|port_of| port_of(port)),
        };
        let endpoint = match number {
            None => name.to_vec(),
            Some(number) if host.is_empty() => number.to_string().into_bytes(),
            Some(number) => match parse_address(host) {
                Some(address) => format!("[{address}]:{number}").into_bytes(),
                None => [b"[", host, b"]:", number.to_string().as_bytes()].concat(),
            },
        };
        Ok((endpoint, addresses, port.to_vec()))
    }
}

/// Takes `port`, `host:port`, `:port`, `[address]:port` apart; the host may be empty.
fn split_host_port(text: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    const NO_SERVICE: &str = "missing service information";
    let (host, port) = if let Some(inside) = text.strip_prefix(b"[") {
        let close = inside
            .iter()
            .position(|&byte| byte == b']')
            .ok_or("missing \"]\"")?;
        let (host, rest) = (&inside[..close], &inside[close + 1..]);
        if rest.first().is_some_and(|&byte| byte != b':') {
            return Err("garbage after \"]\"");
        }
        let host = match host.get(..5) {
            Some(prefix) if prefix.eq_ignore_ascii_case(b"ipv6:") => {
                let address = &host[5..];
                if !matches!(parse_address(address), Some(IpAddr::V6(_))) {
                    return Err("malformed IPv6 address");
                }
                address
            }
            _ => host,
        };
        (host, rest.get(1..).unwrap_or_default())
    } else {
        match text.iter().rposition(|&byte| byte == b':') {
            Some(colon) => (&text[..colon], &text[colon + 1..]),
            None => (&[][..], text),
        }
    };
    if port.is_empty() {
        return Err(NO_SERVICE);
    }
    let bracketed = text.starts_with(b"[");
    if (bracketed || !host.is_empty())
        && check_hostname(host).is_err()
        && parse_address(host).is_none()
    {
        return Err("valid hostname or network address required");
    }
    if port[0].is_ascii_digit() && !port.iter().all(u8::is_ascii_digit) {
        return Err("garbage after numerical service");
    }
    Ok((host, port))
}

/// The first pattern that matches decides: `name/type`, `name.type` or `type`, with `!` for the opposite.
fn is_disabled(patterns: &[u8], name: &[u8], transport: &[u8]) -> bool {
    let full = [name, b"/", transport].concat();
    for pattern in split_list(patterns) {
        let bare = pattern
            .iter()
            .position(|&byte| byte != b'!')
            .unwrap_or(pattern.len());
        let mut wanted = pattern[bare..].to_vec();
        if !wanted.contains(&b'/')
            && let Some(dot) = wanted.iter().rposition(|&byte| byte == b'.')
        {
            wanted[dot] = b'/';
        }
        let target = if wanted.contains(&b'/') {
            &full[..]
        } else {
            transport
        };
        if wanted.eq_ignore_ascii_case(target) {
            return bare % 2 == 0;
        }
    }
    false
}

#[cfg(test)]
mod tests;
