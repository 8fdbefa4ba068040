//! main.cf and master.cf: parsing, evaluation, typed parameters.
//!
//! Start at [`Dictionary`]: it is loaded from the text of main.cf, takes overrides, and answers typed reads
//! (`int`, `time`, `str` …) the way a Postfix program does. [`Common`] reads what every program reads, in the
//! reference's order.
#![forbid(unsafe_code)]

mod accounts;
mod catalog;
mod dictionary;
mod error;
mod expand;
mod hosts;
mod hot;
mod level;
mod lines;
pub mod master_cf;
mod parameter;
pub mod postconf;
mod release;
mod settings;
mod sink;
mod text;

pub use accounts::{Account, Accounts, Group};
pub use catalog::{Catalog, Kind, Origin, Parameter};
pub use dictionary::Dictionary;
pub use error::Error;
pub use expand::{ExpandError, Lookup, expand, scan};
pub use hosts::{HostnameFault, Interface, Resolve, check_hostname};
pub use hot::is_hot;
pub use level::CompatibilityLevel;
pub use lines::{LogicalLine, LogicalLines};
pub use parameter::{
    BoolParameter, IntParameter, LongParameter, NboolParameter, NintParameter, RawParameter,
    StrParameter, TimeParameter,
};
pub use release::Release;
pub use settings::{Common, Surroundings};
pub use sink::Sink;
pub use text::{
    NameValueFault, display, extract_braced, split_list, split_list_braced, split_name_value,
};
