//! Looking up and listing: `-q` and `-s`.

use std::io::{self, Write};
use std::sync::Arc;

use log::warn;
use postkeep_table::{
    Access, Cursor, Flags, LookupError, Opener as _, Outcome as Found, Printable, Step, Table,
    TableName,
};
use postkeep_tables::decode_file_value;

use super::options::Program;
use super::{Command, Fatal, Outcome, for_each_line, message, to_nul};

/// What one key gets, from the first table that has it.
pub(super) struct Tables<'a> {
    command: &'a Command,
    open: Vec<Option<Arc<dyn Table>>>,
    output: io::BufWriter<io::StdoutLock<'static>>,
    found: bool,
}

impl Command {
    /// `-q`.
    pub(super) fn query(&self, key: &[u8]) -> Outcome {
        let mut tables = Tables {
            command: self,
            open: vec![None; self.options.operands.len()],
            output: io::BufWriter::new(io::stdout().lock()),
            found: false,
        };
        let result = if key != b"-" {
            tables.ask(key, false)
        } else if self.options.headers || self.options.bodies {
            message::read(&self.options, |key| tables.ask(key, true))
        } else {
            for_each_line(|key| tables.ask(key, true))
        };
        // What was found before an error is still worth having.
        flush(&mut tables.output)?;
        result.map(|()| tables.found)
    }

    /// `-s`.
    pub(super) fn list(&self) -> Outcome {
        let Some(operand) = self.options.operands.first() else {
            return Ok(false);
        };
        let name = self.table_name(operand)?;
        if name.kind() == b"proxy" && self.registry.find(b"proxy").is_some() {
            return Err(Fatal(
                "can't sequence maps via the proxy service".to_owned(),
            ));
        }
        let table = self.open(&name, Access::Read)?;
        let mut output = io::BufWriter::new(io::stdout().lock());
        let result = self.list_entries(&name, &*table, &mut output);
        flush(&mut output)?;
        result.map(|()| true)
    }

    fn list_entries(
        &self,
        name: &TableName,
        table: &dyn Table,
        output: &mut impl Write,
    ) -> Result<(), Fatal> {
        let mut cursor = Cursor::default();
        let mut step = Step::First;
        let (mut key, mut value) = (Vec::new(), Vec::new());
        loop {
            key.clear();
            value.clear();
            let outcome =
                table.sequence(self.access_flags(), step, &mut cursor, &mut key, &mut value);
            match outcome.map_err(|error| Fatal::of_table(table.name(), "sequence", &error))? {
                Found::Absent => return Ok(()),
                Found::Done => {}
            }
            step = Step::Next;
            if key.is_empty() {
                warn!("table {name}: empty lookup key value is not allowed");
            } else if value.is_empty() {
                warn_empty(name, &key);
            }
            if self.options.flags.contains(Flags::RHS_IS_FILE) {
                let Some(content) = decode_file_value(&value) else {
                    warn_base64(table.name(), &key, &value);
                    continue;
                };
                value = to_nul(&content).to_vec();
            }
            self.write_pair(output, &key, &value)?;
        }
    }

    pub(super) fn open(&self, name: &TableName, access: Access) -> Result<Arc<dyn Table>, Fatal> {
        self.registry
            .open(name, access, self.access_flags())
            .map_err(|error| Fatal(error.to_string()))
    }

    fn write_pair(&self, output: &mut impl Write, key: &[u8], value: &[u8]) -> Result<(), Fatal> {
        let separator: &[u8] = match self.program {
            Program::Postmap => b"\t",
            Program::Postalias => b":\t",
        };
        let line = if self.options.json {
            json(key, value)
        } else {
            [key, separator, value, b"\n"].concat()
        };
        write(output, &line)
    }
}

impl Tables<'_> {
    /// Looks up a key and writes the value, or the key and the value.
    pub(super) fn ask(&mut self, key: &[u8], with_key: bool) -> Result<(), Fatal> {
        let command = self.command;
        let flags = command.access_flags();
        for (number, operand) in command.options.operands.iter().enumerate() {
            let table = if let Some(table) = &self.open[number] {
                Arc::clone(table)
            } else {
                let table = command.open(&command.table_name(operand)?, Access::Read)?;
                Arc::clone(self.open[number].insert(table))
            };
            let name = table.name();
            let mut value = Vec::new();
            let mut outcome = table.lookup(flags, key, &mut value);
            if matches!(outcome, Ok(Found::Done)) && flags.contains(Flags::RHS_IS_FILE) {
                if let Some(content) = decode_file_value(&value) {
                    value = to_nul(&content).to_vec();
                } else {
                    warn_base64(name, key, &value);
                    outcome = Err(LookupError::Config(String::new()));
                }
            }
            if outcome.map_err(|error| Fatal::of_table(name, "query", &error))? == Found::Absent {
                continue;
            }
            if value.is_empty() {
                // For a single key the reference names the table as the operand does.
                let named = (!with_key)
                    .then(|| command.table_name(operand))
                    .transpose()?;
                warn_empty(named.as_ref().unwrap_or(name), key);
            }
            self.found = true;
            if with_key || command.options.json {
                command.write_pair(&mut self.output, key, &value)?;
            } else {
                value.push(b'\n');
                write(&mut self.output, &value)?;
            }
            return Ok(());
        }
        Ok(())
    }
}

fn warn_empty(name: &TableName, key: &[u8]) {
    warn!(
        "table {name}: key {}: empty string result is not allowed",
        Printable(key)
    );
    warn!("table {name} should return NO RESULT in case of NOT FOUND");
}

fn warn_base64(name: &TableName, key: &[u8], value: &[u8]) {
    let start = &value[..value.len().min(30)];
    warn!(
        "table {name}: key {}: malformed BASE64 value: {}",
        Printable(key),
        Printable(start)
    );
}

fn write(output: &mut impl Write, bytes: &[u8]) -> Result<(), Fatal> {
    output
        .write_all(bytes)
        .map_err(|error| cannot_write(&error))
}

fn flush(output: &mut impl Write) -> Result<(), Fatal> {
    output.flush().map_err(|error| cannot_write(&error))
}

fn cannot_write(error: &io::Error) -> Fatal {
    Fatal(format!("write stdout: {}", postkeep_sys::error_text(error)))
}

/// One JSON object per line; bytes above 127 go through as they are (Postfix `src/util/quote_for_json.c`).
fn json(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut line = vec![b'{'];
    for (text, end) in [(key, &b": "[..]), (value, b"}\n")] {
        line.push(b'"');
        for &byte in text {
            match byte {
                0x08 => line.extend_from_slice(b"\\b"),
                0x0c => line.extend_from_slice(b"\\f"),
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                b'\t' => line.extend_from_slice(b"\\t"),
                b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
                0..=0x1f | 0x7f => line.extend_from_slice(format!("\\u{byte:04X}").as_bytes()),
                _ => line.push(byte),
            }
        }
        line.push(b'"');
        line.extend_from_slice(end);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_escapes_what_it_must() {
        assert_eq!(
            json(b"a\"\\\n", b"\x7f\x01\xc3\xa9"),
            b"{\"a\\\"\\\\\\n\": \"\\u007F\\u0001\xc3\xa9\"}\n"
        );
    }
}
