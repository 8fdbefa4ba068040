//! The text of one log record.

use std::time::SystemTime;

use postkeep_sys::clock::local_time;

/// Longest text of a record, in bytes, without the word for its severity.
const MAX_TEXT: usize = 2000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// For the record.
    Info,
    /// Somebody should have a look.
    Warning,
    /// Something does not work; the process goes on.
    Error,
    /// The process ends.
    Fatal,
    /// The process found itself in a state that cannot be, and aborts.
    Panic,
}

impl Severity {
    /// The words before the text.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Info => "",
            Self::Warning => "warning: ",
            Self::Error => "error: ",
            Self::Fatal => "fatal: ",
            Self::Panic => "panic: ",
        }
    }

    /// The severity number of syslog(3).
    fn number(self) -> u8 {
        match self {
            Self::Info => 6,
            Self::Warning => 4,
            Self::Error => 3,
            Self::Fatal | Self::Panic => 2,
        }
    }
}

/// A syslog facility, `syslog_facility` in main.cf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facility(u8);

impl Facility {
    /// With the number that syslog(3) gives it, not shifted; see `Common::syslog_facility_code`.
    pub fn new(code: u8) -> Self {
        Self(code)
    }
}

impl Default for Facility {
    /// `mail`.
    fn default() -> Self {
        Self(2)
    }
}

/// One printable line: other characters become `?`, and so does every byte of a character outside ASCII
/// unless `utf8`.
///
/// U+FFFD stands for a byte that was no UTF-8 when the text was made; it is one `?`.
pub(super) fn sanitise(text: &str, utf8: bool) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            ' '..='~' => line.push(character),
            '\u{fffd}' => line.push('?'),
            _ if character.is_ascii() => line.push('?'),
            _ if utf8 => line.push(character),
            _ => line.extend(std::iter::repeat_n('?', character.len_utf8())),
        }
    }
    line
}

/// The first [`MAX_TEXT`] bytes, or a little less so as not to split a character.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// A record as syslogd gets it on its socket: RFC 3164, as the C library writes it.
pub(super) fn syslog(
    now: SystemTime,
    facility: Facility,
    severity: Severity,
    ident: &str,
    pid: u32,
    text: &str,
) -> Vec<u8> {
    let time = local_time(now);
    let priority = u16::from(facility.0) << 3 | u16::from(severity.number());
    // A tag with a bracket names another process already.
    let pid = if ident.contains('[') {
        String::new()
    } else {
        format!("[{pid}]")
    };
    format!(
        "<{priority}>{} {:2} {:02}:{:02}:{:02} {ident}{pid}: {}{text}",
        time.month_name(),
        time.day,
        time.hour,
        time.minute,
        time.second,
        severity.prefix(),
    )
    .into_bytes()
}

/// A record as postlogd(8) gets it.
pub(super) fn postlog(
    now: SystemTime,
    host: &str,
    severity: Severity,
    ident: &str,
    pid: u32,
    text: &str,
) -> Vec<u8> {
    let time = local_time(now);
    format!(
        "{} {:02} {:02}:{:02}:{:02} {host} {ident}[{pid}]: {}{text}",
        time.month_name(),
        time.day,
        time.hour,
        time.minute,
        time.second,
        severity.prefix(),
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn unprintables_become_question_marks() {
        assert_eq!(sanitise("a\tb\nc\x1b\x7fd", true), "a?b?c??d");
        assert_eq!(sanitise("grün", true), "grün");
        assert_eq!(sanitise("grün", false), "gr??n");
        assert_eq!(sanitise("a\u{fffd}b", true), "a?b");
    }

    #[test]
    fn text_is_cut_at_2000_bytes_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"x".repeat(2001)).len(), 2000);
        assert_eq!(cut(&format!("{}ü", "x".repeat(1999))).len(), 1999);
    }

    #[test]
    fn syslog_form() {
        let facility = Facility::new(19);
        let form = |severity, ident| {
            let bytes = syslog(UNIX_EPOCH, facility, severity, ident, 17, "text");
            String::from_utf8(bytes).unwrap()
        };
        let info = form(Severity::Info, "postfix/smtpd");
        assert!(info.starts_with("<158>"), "{info}");
        assert!(info.ends_with(" postfix/smtpd[17]: text"), "{info}");
        // Blank-padded day: "Jan  1" or "Dec 31", by the zone.
        assert_eq!(info.find(':'), Some("<158>Jan  1 00".len()));
        assert!(form(Severity::Fatal, "a[1]").ends_with(" a[1]: fatal: text"));
        assert!(form(Severity::Panic, "a").starts_with("<154>"));
    }

    #[test]
    fn postlog_form() {
        let bytes = postlog(
            UNIX_EPOCH,
            "host",
            Severity::Warning,
            "postfix/postlog",
            17,
            "a warning",
        );
        let text = String::from_utf8(bytes).unwrap();
        assert!(
            text.ends_with(" host postfix/postlog[17]: warning: a warning"),
            "{text}"
        );
        assert_eq!(text.find(':'), Some("Jan 01 00".len()));
        assert_ne!(text.as_bytes()[4], b' ');
    }
}
