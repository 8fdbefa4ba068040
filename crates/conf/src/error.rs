//! What makes a program give up over its configuration.

use crate::text::NameValueFault;

/// A fatal fault of the configuration.
///
/// `Display` is the reference's text after `fatal: `, letter for letter. Values are shown as
/// [`display`](crate::display) shows them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are what the texts name")]
pub enum Error {
    /// A logical line is no assignment.
    #[error("{file}, line {line}: {fault}: \"{text}\"")]
    Assignment {
        file: String,
        line: usize,
        fault: NameValueFault,
        text: String,
    },
    /// An option `-o` of a daemon is no assignment.
    #[error("invalid \"-o {text}\" option value: {fault}")]
    Override { text: String, fault: NameValueFault },
    /// An option `-o` of postconf is no assignment.
    #[error("invalid parameter override: {text}: {fault}")]
    ParameterOverride { text: String, fault: NameValueFault },
    /// An expression is malformed, nested too deep or grows too large; a warning said what is wrong.
    #[error("dictionary {dictionary}: macro processing error")]
    Expression { dictionary: String },
    /// A number in a comparison does not fit 64 bits.
    #[error("mac_exp_eval: bad conversion: {text}")]
    Conversion { text: String },
    /// An integer parameter is none, or does not fit.
    #[error("bad numerical configuration: {name} = {value}")]
    Number { name: String, value: String },
    /// An integer parameter is below its minimum.
    #[error("invalid {name} parameter value {value} < {limit}")]
    NumberBelow {
        name: String,
        value: i64,
        limit: i64,
    },
    /// An integer parameter is above its maximum.
    #[error("invalid {name} parameter value {value} > {limit}")]
    NumberAbove {
        name: String,
        value: i64,
        limit: i64,
    },
    /// A boolean parameter is neither `yes` nor `no`.
    #[error("bad boolean configuration: {name} = {value}")]
    Boolean { name: String, value: String },
    /// A time parameter is none, or does not fit.
    #[error("parameter {name}: bad time value or unit: {value}")]
    Time { name: String, value: String },
    /// A time parameter is below its minimum, in seconds.
    #[error("invalid {name}: {value} (min {limit})")]
    TimeBelow {
        name: String,
        value: i64,
        limit: i64,
    },
    /// A time parameter is above its maximum, in seconds.
    #[error("invalid {name}: {value} (max {limit})")]
    TimeAbove {
        name: String,
        value: i64,
        limit: i64,
    },
    /// A time parameter's default has no unit: a mistake in a program.
    #[error("parameter {name}: missing time unit in default value: {default}")]
    TimeUnit { name: String, default: String },
    /// A string parameter is too short, in bytes.
    #[error("bad string length {length} < {limit}: {name} = {value}")]
    TextBelow {
        name: String,
        value: String,
        length: usize,
        limit: usize,
    },
    /// A string parameter is too long, in bytes.
    #[error("bad string length {length} > {limit}: {name} = {value}")]
    TextAbove {
        name: String,
        value: String,
        length: usize,
        limit: usize,
    },
    /// An unexpanded parameter is too short, in bytes.
    #[error("bad string length ({length} < {limit}): {name} = {value}")]
    RawBelow {
        name: String,
        value: String,
        length: usize,
        limit: usize,
    },
    /// An unexpanded parameter is too long, in bytes.
    #[error("bad string length ({length} > {limit}): {name} = {value}")]
    RawAbove {
        name: String,
        value: String,
        length: usize,
        limit: usize,
    },
    /// A compatibility level is none.
    #[error("malformed compatibility level syntax: \"{text}\"")]
    CompatibilityLevel { text: String },
    /// An entry of master.cf is wrong.
    #[error("{file}: line {line}: {text}")]
    Master {
        file: String,
        line: usize,
        text: String,
    },
    /// Settings do not go together, or a user, group, host or word is not known; the text is the reference's.
    #[error("{0}")]
    Setting(String),
}
