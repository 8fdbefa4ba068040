//! main.cf and master.cf: parsing, evaluation, typed parameters.
