//! `static:TEXT` answers every key with the same text.
//!
//! The text is taken as it is, colons, commas and quotes included. A text that starts with `{` must end at the
//! matching `}`; both go, and so does the white space inside them: `static:{ two words }`. The empty key is
//! answered too. With values from files the text is a list of file names.
//!
//! The table can be opened for writing, but has no operation that writes.

use std::sync::Arc;

use postkeep_table::{Flags, Latency, LookupError, OpenError, Outcome, Owner, Table, TableName};

use crate::table_type::{Capabilities, Request, TableType};
use crate::{braces, read_file_values};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "static",
    summary: "one answer for every key",
    capabilities: Capabilities::DATA_IN_NAME,
    open,
    build: None,
};

struct Static {
    name: TableName,
    flags: Flags,
    text: Vec<u8>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let mut text = request.name.name();
    if text.first() == Some(&b'{') {
        text = braces::strip(text)
            .map_err(|why| OpenError::Unavailable(format!("bad static:name syntax: {why}")))?;
    }
    let text = if request.flags.contains(Flags::RHS_IS_FILE) {
        read_file_values(text).map_err(|error| OpenError::Unavailable(error.to_string()))?
    } else {
        text.to_vec()
    };
    Ok(Arc::new(Static {
        name: request.name.clone(),
        flags: request.fixed_flags(),
        text,
    }))
}

impl Table for Static {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Memory
    }

    fn lookup(&self, _: Flags, _: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        value.extend_from_slice(&self.text);
        Ok(Outcome::Done)
    }

    fn owner(&self) -> Owner {
        Owner::Trusted
    }
}

#[cfg(test)]
mod tests {
    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    fn open(name: &str) -> Result<Arc<dyn Table>, OpenError> {
        let name = TableName::parse(name.as_bytes()).unwrap();
        Registry::new(Context::default()).open(&name, Access::Read, Flags::empty())
    }

    fn answer(name: &str) -> String {
        let mut value = Vec::new();
        assert_eq!(
            open(name)
                .unwrap()
                .lookup(Flags::empty(), b"", &mut value)
                .unwrap(),
            Outcome::Done
        );
        String::from_utf8(value).unwrap()
    }

    #[test]
    fn text_is_literal_outside_braces() {
        assert_eq!(answer("static:a:b, \"c\" "), "a:b, \"c\" ");
        assert_eq!(answer("static:{  two words }"), "two words");
        assert_eq!(answer("static:{}"), "");
    }

    #[test]
    fn braces_must_match() {
        let reason = |name| open(name).err().unwrap().to_string();
        assert_eq!(
            reason("static:{x"),
            "bad static:name syntax: missing '}' in \"{x\""
        );
        assert_eq!(
            reason("static:{x}y"),
            "bad static:name syntax: syntax error after '}' in \"{x}y\""
        );
    }
}
