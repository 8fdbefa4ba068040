use serde_json::Value as Json;

use super::*;
use crate::encode::ListWriter;
use crate::vectors::{bytes, hex, load};

/// What a logger makes of a warning that wants ASCII only.
fn ascii(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            ' '..='~' => character.to_string(),
            _ => "?".repeat(character.len_utf8()),
        })
        .collect()
}

fn encoding(name: &Json) -> Encoding {
    match name.as_str().unwrap() {
        "null" => Encoding::Null,
        "plain" => Encoding::Plain,
        "base64" => Encoding::Base64,
        other => panic!("no such encoding: {other}"),
    }
}

const NESTED: &[Wanted<'static>] = &[Wanted::Int("a"), Wanted::Text("b")];

fn wanted(text: &str) -> Wanted<'_> {
    let (kind, name) = text.split_once(':').unwrap_or((text, ""));
    match kind {
        "int" => Wanted::Int(name),
        "long" => Wanted::Long(name),
        "text" => Wanted::Text(name),
        "data" => Wanted::Data(name),
        "bool" => Wanted::Boolean(name),
        "streq" => {
            let (name, expected) = name.split_once('=').unwrap();
            Wanted::Equal(name, expected)
        }
        "multi" => Wanted::Multi,
        "nested" => Wanted::Nested(NESTED),
        other => panic!("no such wish: {other}"),
    }
}

/// Feeds the input in pieces of `piece` bytes, the end after the last one.
fn scan_in_pieces(
    scanner: &mut Scanner,
    wishes: &[Wanted<'_>],
    input: &[u8],
    piece: usize,
    end: Option<End>,
    name: &str,
) -> (Progress, Vec<String>) {
    let mut warnings = Vec::new();
    let mut have = 0;
    while have < input.len() {
        let progress = scanner.resume(wishes, &input[..have], None, name, &mut warnings);
        if progress != Progress::Incomplete {
            return (progress, warnings);
        }
        have = (have + piece).min(input.len());
    }
    let progress = scanner.resume(wishes, input, end, name, &mut warnings);
    (progress, warnings)
}

fn shown(scanner: &Scanner, input: &[u8]) -> Vec<Json> {
    let text = |bytes: &[u8]| {
        Json::from(
            bytes
                .iter()
                .map(|&byte| char::from(byte))
                .collect::<String>(),
        )
    };
    (0..scanner.values())
        .map(|index| match scanner.value(index, input).unwrap() {
            Value::Number(number) | Value::Named(_, number) => Json::from(number.to_string()),
            Value::Bytes(bytes) => text(bytes),
            Value::Boolean(value) => Json::from(value.to_string()),
            Value::Multi(entries) => {
                let mut entries = entries.to_vec();
                entries.sort();
                entries
                    .iter()
                    .map(|(name, value)| Json::from(vec![text(name), text(value)]))
                    .collect()
            }
        })
        .collect()
}

/// Each mistake, as the reference's own library took it, in one piece and byte by byte.
#[test]
fn mistakes_are_taken_as_the_reference_takes_them() {
    let file: Json = load(include_str!("../../../../vectors/wire/recorded.json"));
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() > 500);
    for case in cases {
        let input = bytes(&case["input"]);
        let flags =
            ScanFlags::from_bits(u8::try_from(case["flags"].as_u64().unwrap()).unwrap()).unwrap();
        let wishes: Vec<_> = case["wishes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|wish| wanted(wish.as_str().unwrap()))
            .collect();
        for piece in [input.len().max(1), 1, 3] {
            let mut scanner = Scanner::new(encoding(&case["encoding"]), flags, Limits::default());
            let end = Some(End::Closed);
            let (progress, warnings) =
                scan_in_pieces(&mut scanner, &wishes, &input, piece, end, "unknown_stream");
            let (returns, consumed) = match progress {
                Progress::Incomplete => panic!("{case}"),
                Progress::Done {
                    recovered,
                    consumed,
                    ..
                } => (i64::try_from(recovered).unwrap(), consumed),
                Progress::Failed { consumed, .. } => (-1, consumed),
            };
            let warnings: Vec<_> = warnings.iter().map(|text| ascii(text)).collect();
            assert_eq!(Json::from(warnings), case["warnings"], "{case}");
            assert_eq!(Json::from(returns), case["returns"], "{case}");
            assert_eq!(Json::from(consumed), case["consumed"], "{case}");
            let mut values = shown(&scanner, &input);
            // The recorder shows ints with a sign and in 32 bits.
            for (value, wish) in values.iter_mut().zip(flat(&wishes)) {
                if let Wanted::Int(_) = wish {
                    let number: u64 = value.as_str().unwrap().parse().unwrap();
                    *value = Json::from(crate::number::low_int(number).to_string());
                }
            }
            let expected = case["values"].as_array().unwrap();
            assert_eq!(values, expected[..values.len()], "{case}");
        }
    }
}

/// The wishes that yield values, nested ones in place.
fn flat<'w>(wishes: &[Wanted<'w>]) -> Vec<Wanted<'w>> {
    wishes
        .iter()
        .flat_map(|wish| match wish {
            Wanted::Nested(inner) => inner.to_vec(),
            Wanted::Equal(..) => Vec::new(),
            other => vec![*other],
        })
        .collect()
}

/// Writes a list of the vector file `lists.json`.
fn write(case: &Json, out: &mut Vec<u8>) {
    let mut list = ListWriter::new(encoding(&case["encoding"]), out);
    for item in case["list"].as_array().unwrap() {
        match item[0].as_str().unwrap() {
            "int" => {
                let value = i32::try_from(item[2].as_i64().unwrap()).unwrap();
                list.int(item[1].as_str().unwrap(), value);
            }
            "long" => {
                list.long(item[1].as_str().unwrap(), item[2].as_i64().unwrap());
            }
            "text" => {
                list.text(item[1].as_str().unwrap(), &bytes(&item[2]));
            }
            "data" => {
                list.data(item[1].as_str().unwrap(), &bytes(&item[2]));
            }
            "bool" => {
                list.boolean(item[1].as_str().unwrap(), item[2].as_bool().unwrap());
            }
            "multi" => {
                let pairs: Vec<_> = item[1]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|pair| (bytes(&pair[0]), bytes(&pair[1])))
                    .collect();
                list.multi(pairs.iter().map(|(name, value)| (&name[..], &value[..])));
            }
            other => panic!("no such type: {other}"),
        }
    }
    list.finish();
}

#[test]
fn lists_have_these_bytes_and_come_back() {
    let file = load(include_str!("../../../../vectors/wire/lists.json"));
    for case in file["cases"].as_array().unwrap() {
        let mut out = b"before".to_vec();
        write(case, &mut out);
        assert_eq!(&out[..6], b"before");
        let input = out.split_off(6);
        assert_eq!(input, hex(&case["hex"]), "{case}");

        let items = case["list"].as_array().unwrap();
        let wishes: Vec<_> = items
            .iter()
            .map(|item| (item[0].as_str().unwrap(), item[1].as_str().unwrap_or("")))
            .collect();
        let wishes: Vec<_> = wishes
            .iter()
            .map(|(kind, name)| match *kind {
                "int" => Wanted::Int(name),
                "long" => Wanted::Long(name),
                "text" => Wanted::Text(name),
                "data" => Wanted::Data(name),
                "bool" => Wanted::Boolean(name),
                _ => Wanted::Multi,
            })
            .collect();
        for piece in 1..=input.len() {
            let mut scanner = Scanner::new(
                encoding(&case["encoding"]),
                ScanFlags::STRICT,
                Limits::default(),
            );
            let (progress, warnings) =
                scan_in_pieces(&mut scanner, &wishes, &input, piece, None, "x");
            assert_eq!(
                progress,
                Progress::Done {
                    recovered: items.len(),
                    consumed: input.len(),
                    stop: Stop::Terminator
                },
                "{case}"
            );
            assert!(warnings.is_empty());
            for (item, value) in items.iter().zip(shown(&scanner, &input)) {
                match item[0].as_str().unwrap() {
                    "multi" => assert_eq!(value, item[1]),
                    "int" | "long" => {
                        let number: u64 = value.as_str().unwrap().parse().unwrap();
                        let wanted = item[2].as_i64().unwrap();
                        let wanted = if item[0] == "int" {
                            u64::from(i32::try_from(wanted).unwrap().cast_unsigned())
                        } else {
                            wanted.cast_unsigned()
                        };
                        assert_eq!(number, wanted);
                    }
                    "bool" => assert_eq!(value.as_str().unwrap(), item[2].to_string()),
                    _ => assert_eq!(value, item[2]),
                }
            }
        }
    }
}

/// Scans all of a null-encoded input strictly, byte by byte.
fn strictly(wishes: &[Wanted<'_>], input: &[u8], end: Option<End>) -> (Progress, Vec<String>) {
    with_limits(Encoding::Null, wishes, input, end, Limits::default())
}

/// Scans in one piece and byte by byte, which must be the same.
fn with_limits(
    encoding: Encoding,
    wishes: &[Wanted<'_>],
    input: &[u8],
    end: Option<End>,
    limits: Limits,
) -> (Progress, Vec<String>) {
    let scan = |piece| {
        let mut scanner = Scanner::new(encoding, ScanFlags::STRICT, limits);
        scan_in_pieces(&mut scanner, wishes, input, piece, end, "NAME")
    };
    let whole = scan(input.len().max(1));
    assert_eq!(scan(1), whole);
    whole
}

#[test]
fn ends_and_their_warnings() {
    let wishes = [Wanted::Text("a")];
    let ended = |input: &[u8], end| {
        let (progress, warnings) = strictly(&wishes, input, Some(end));
        assert_eq!(
            progress,
            Progress::Failed {
                consumed: input.len(),
                failure: Failure::Ended(end)
            }
        );
        warnings.join("\n")
    };
    for end in [End::Closed, End::TimedOut] {
        let (progress, warnings) = strictly(&wishes, b"", Some(end));
        assert_eq!(
            progress,
            Progress::Done {
                recovered: 0,
                consumed: 0,
                stop: Stop::Nothing
            }
        );
        assert!(warnings.is_empty());
        assert_eq!(
            ended(b"a\0b", end),
            "unexpected end-of-input from NAME while reading input attribute value"
        );
        assert_eq!(
            ended(b"aa", end),
            "unexpected end-of-input from NAME while reading input attribute name"
        );
    }
    assert_eq!(
        ended(b"a\0", End::Closed),
        "premature end-of-input on NAME while reading input attribute value"
    );
    assert_eq!(
        ended(b"a\0", End::TimedOut),
        "timeout on NAME while reading input attribute value"
    );
    assert_eq!(
        ended(b"a\0b\0", End::TimedOut),
        "timeout on NAME while reading input attribute name"
    );
    // A string of the line encodings may break off anywhere.
    let limits = Limits::default();
    let (_, warnings) = with_limits(
        Encoding::Plain,
        &wishes,
        b"a=b",
        Some(End::TimedOut),
        limits,
    );
    assert_eq!(
        warnings,
        ["timeout on NAME while reading input attribute value"]
    );
}

#[test]
fn an_end_within_a_skipped_value_is_told_twice() {
    let mut scanner = Scanner::new(Encoding::Null, ScanFlags::MISSING, Limits::default());
    let mut warnings = Vec::new();
    scanner.resume(
        &[Wanted::Text("a")],
        b"x\0y",
        Some(End::TimedOut),
        "NAME",
        &mut warnings,
    );
    assert_eq!(
        warnings,
        [
            "unexpected end-of-input from NAME while reading input attribute value",
            "timeout on NAME while reading input attribute name"
        ]
    );
}

#[test]
fn truth_values_are_strict() {
    let wishes = [Wanted::Boolean("a")];
    let bad = |encoding, input: &[u8]| {
        let (progress, warnings) = with_limits(encoding, &wishes, input, None, Limits::default());
        assert!(matches!(
            progress,
            Progress::Failed {
                failure: Failure::Malformed,
                ..
            }
        ));
        warnings.join("\n")
    };
    assert_eq!(
        bad(Encoding::Null, b"a\x002\0\0"),
        "malformed boolean value from NAME while reading input attribute value: 2"
    );
    assert_eq!(
        bad(Encoding::Null, b"a\0true\0\0"),
        "malformed numerical data from NAME while reading input attribute value: true"
    );
    assert_eq!(
        bad(Encoding::Plain, b"a=1\n\n"),
        "malformed boolean value from NAME while reading input attribute value: 1"
    );
    assert_eq!(
        bad(Encoding::Plain, b"a\n\n"),
        "missing value for number attribute a from NAME"
    );
    assert_eq!(
        bad(Encoding::Base64, b"YQ==\n\n"),
        "missing value for boolean attribute a from NAME"
    );
}

#[test]
fn a_number_may_have_several_names() {
    let wishes = [Wanted::IntNamed(&["flags", "instance_flags"])];
    for (input, which) in [(&b"flags\x005\0\0"[..], 0), (b"instance_flags\x005\0\0", 1)] {
        let mut scanner = Scanner::new(Encoding::Null, ScanFlags::STRICT, Limits::default());
        scanner.resume(&wishes, input, None, "NAME", &mut ());
        assert_eq!(scanner.value(0, input), Some(Value::Named(which, 5)));
    }
    let (_, warnings) = strictly(&wishes, b"x\x005\0\0", None);
    assert_eq!(
        warnings,
        ["unexpected attribute x from NAME (expecting: flags)"]
    );
}

#[test]
fn a_table_takes_1024_entries() {
    for encoding in [Encoding::Null, Encoding::Plain, Encoding::Base64] {
        for (count, braces) in [(1024, true), (1024, false), (1025, true), (1025, false)] {
            let mut input = Vec::new();
            let mut list = ListWriter::new(encoding, &mut input);
            let names: Vec<_> = (0..count).map(|number| format!("n{number}")).collect();
            if braces {
                list.multi(names.iter().map(|name| (name.as_bytes(), &b"v"[..])));
            } else {
                for name in &names {
                    list.text(name, b"v");
                }
            }
            list.finish();
            let (progress, warnings) =
                with_limits(encoding, &[Wanted::Multi], &input, None, Limits::default());
            let Progress::Done {
                recovered, stop, ..
            } = progress
            else {
                panic!("{progress:?}");
            };
            assert_eq!(recovered, 1024);
            if count == 1024 {
                assert_eq!((stop, warnings.len()), (Stop::Terminator, 0));
            } else {
                assert_eq!(stop, Stop::Unexpected);
                assert_eq!(
                    warnings,
                    ["attribute count exceeds limit 1024 in input from NAME"]
                );
            }
        }
    }
}

#[test]
fn limits_break_off_wherever_the_input_is_cut() {
    let limits = Limits {
        name: 4,
        value: 6,
        list: 20,
        attributes: 3,
    };
    let wishes = [Wanted::Multi];
    for (input, warning) in [
        (
            &b"abcde\0x\0\0"[..],
            "attribute name length exceeds limit 4 in input from NAME",
        ),
        (
            b"a\x001234567\0\0",
            "attribute value length exceeds limit 6 in input from NAME",
        ),
        (
            b"a\x00123456\0b\x00123456\0c\x00123456\0\0",
            "attribute list length exceeds limit 20 in input from NAME",
        ),
        (
            b"a\0\0b\0\0c\0\0d\0\0\0",
            "attribute count exceeds limit 3 in input from NAME",
        ),
    ] {
        let (progress, warnings) = with_limits(Encoding::Null, &wishes, input, None, limits);
        assert!(matches!(
            progress,
            Progress::Failed {
                failure: Failure::Limit,
                ..
            }
        ));
        assert_eq!(warnings, [warning]);
    }
    let fits = b"abcd\x00123456\0b\0\0c\0\0\0";
    let (progress, _) = with_limits(Encoding::Null, &wishes, fits, None, limits);
    assert!(matches!(progress, Progress::Done { recovered: 3, .. }));
}

#[test]
fn a_list_can_be_read_in_several_scans() {
    let input = b"request\0x\0a\x001\0b\0two\0\0";
    let more = ScanFlags::STRICT | ScanFlags::MORE;
    let mut scanner = Scanner::new(Encoding::Null, more, Limits::default());
    let scan = |scanner: &mut Scanner, wishes: &[Wanted<'_>]| {
        let progress = scanner.resume(wishes, input, None, "NAME", &mut ());
        let Progress::Done {
            recovered, stop, ..
        } = progress
        else {
            panic!("{progress:?}");
        };
        (recovered, stop)
    };
    assert_eq!(
        scan(&mut scanner, &[Wanted::Text("request")]),
        (1, Stop::Wishes)
    );
    assert_eq!(scanner.value(0, input), Some(Value::Bytes(b"x")));
    scanner.follow_up(more);
    assert_eq!(scan(&mut scanner, &[Wanted::Int("a")]), (1, Stop::Wishes));
    scanner.carry_on(ScanFlags::STRICT);
    assert_eq!(
        scan(&mut scanner, &[Wanted::Text("b")]),
        (2, Stop::Terminator)
    );
    assert_eq!(scanner.value(0, input), Some(Value::Number(1)));
    assert_eq!(scanner.value(1, input), Some(Value::Bytes(b"two")));
    assert_eq!(scanner.value(2, input), None);
}

#[test]
fn looking_ahead() {
    assert_eq!(
        look_ahead(Encoding::Null, b"\0a", None),
        LookAhead::Terminator
    );
    assert_eq!(look_ahead(Encoding::Null, b"a", None), LookAhead::More);
    assert_eq!(
        look_ahead(Encoding::Plain, b"\n", None),
        LookAhead::Terminator
    );
    assert_eq!(
        look_ahead(Encoding::Base64, b"", None),
        LookAhead::Incomplete
    );
    assert_eq!(
        look_ahead(Encoding::Null, b"", Some(End::Closed)),
        LookAhead::Ended(End::Closed)
    );
}

mod properties {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const ENCODINGS: [Encoding; 3] = [Encoding::Null, Encoding::Plain, Encoding::Base64];

    #[derive(Clone, Debug)]
    enum Item {
        Int(i32),
        Long(i64),
        Text(Vec<u8>),
        Data(Vec<u8>),
        Boolean(bool),
        Multi(Vec<Entry>),
    }

    /// Text that all encodings can carry.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        vec(
            any::<u8>().prop_filter("NUL and LF end a text", |byte| !matches!(byte, 0 | b'\n')),
            0..20,
        )
    }

    fn item() -> impl Strategy<Value = Item> {
        let entry = ("[a-z]{1,8}".prop_map(String::into_bytes), text());
        prop_oneof![
            any::<i32>().prop_map(Item::Int),
            any::<i64>().prop_map(Item::Long),
            text().prop_map(Item::Text),
            vec(any::<u8>(), 0..20).prop_map(Item::Data),
            any::<bool>().prop_map(Item::Boolean),
            vec(entry, 0..5).prop_map(|mut entries| {
                entries.sort();
                entries.dedup_by(|one, other| one.0 == other.0);
                Item::Multi(entries)
            }),
        ]
    }

    fn any_wish() -> impl Strategy<Value = Wanted<'static>> {
        prop_oneof![
            Just(Wanted::Int("a")),
            Just(Wanted::Long("a")),
            Just(Wanted::Text("a")),
            Just(Wanted::Text("b")),
            Just(Wanted::Data("a")),
            Just(Wanted::Boolean("a")),
            Just(Wanted::Equal("a", "b")),
            Just(Wanted::Multi),
            Just(Wanted::Nested(NESTED)),
        ]
    }

    /// Bytes that often are something.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        vec(
            prop_oneof![
                4 => prop::sample::select(b"\0\0\0\n=:{}ab1".to_vec()),
                1 => any::<u8>(),
                1 => Just(b'='),
            ],
            0..60,
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(items in vec(item(), 0..6), which in 0..3usize, piece in 1..40usize) {
            let names: Vec<_> = (0..items.len()).map(|index| format!("name{index}")).collect();
            let mut input = Vec::new();
            let mut list = ListWriter::new(ENCODINGS[which], &mut input);
            let mut wishes = Vec::new();
            let mut count = 0;
            for (item, name) in items.iter().zip(&names) {
                count += 1;
                match item {
                    Item::Int(value) => { list.int(name, *value); wishes.push(Wanted::Int(name)); }
                    Item::Long(value) => { list.long(name, *value); wishes.push(Wanted::Long(name)); }
                    Item::Text(value) => { list.text(name, value); wishes.push(Wanted::Text(name)); }
                    Item::Data(value) => { list.data(name, value); wishes.push(Wanted::Data(name)); }
                    Item::Boolean(value) => { list.boolean(name, *value); wishes.push(Wanted::Boolean(name)); }
                    Item::Multi(entries) => {
                        list.multi(entries.iter().map(|(name, value)| (&name[..], &value[..])));
                        wishes.push(Wanted::Multi);
                        count = count - 1 + entries.len();
                    }
                }
            }
            list.finish();
            let mut scanner = Scanner::new(ENCODINGS[which], ScanFlags::STRICT, Limits::default());
            let (progress, warnings) = scan_in_pieces(&mut scanner, &wishes, &input, piece, None, "x");
            prop_assert!(warnings.is_empty(), "{warnings:?}");
            prop_assert_eq!(
                progress,
                Progress::Done { recovered: count, consumed: input.len(), stop: Stop::Terminator }
            );
            for (index, item) in items.iter().enumerate() {
                let value = scanner.value(index, &input).unwrap();
                let same = match (item, value) {
                    (Item::Int(wanted), Value::Number(number)) => crate::number::low_int(number) == *wanted,
                    (Item::Long(wanted), Value::Number(number)) => number.cast_signed() == *wanted,
                    (Item::Text(wanted) | Item::Data(wanted), Value::Bytes(bytes)) => wanted == bytes,
                    (Item::Boolean(wanted), Value::Boolean(value)) => value == *wanted,
                    (Item::Multi(wanted), Value::Multi(entries)) => wanted == entries,
                    _ => false,
                };
                prop_assert!(same, "{item:?} {value:?}");
            }
        }

        #[test]
        fn pieces_give_the_same_as_the_whole(
            input in noise(),
            wishes in vec(any_wish(), 0..4),
            flags in 0..16u8,
            which in 0..3usize,
            piece in 1..5usize,
            end in prop_oneof![Just(None), Just(Some(End::Closed)), Just(Some(End::TimedOut))],
            limit in 1..40usize,
        ) {
            let flags = ScanFlags::from_bits_truncate(flags);
            let limits = Limits { name: limit, value: limit, list: limit * 2, attributes: limit };
            let mut whole = Scanner::new(ENCODINGS[which], flags, limits);
            let mut warnings = Vec::new();
            let progress = whole.resume(&wishes, &input, end, "x", &mut warnings);
            prop_assert!(end.is_none() || progress != Progress::Incomplete);
            let mut pieces = Scanner::new(ENCODINGS[which], flags, limits);
            let other = scan_in_pieces(&mut pieces, &wishes, &input, piece, end, "x");
            prop_assert_eq!((progress, warnings), other);
            prop_assert_eq!(shown(&whole, &input), shown(&pieces, &input));
            match progress {
                Progress::Incomplete => {}
                Progress::Done { consumed, .. } | Progress::Failed { consumed, .. } => {
                    prop_assert!(consumed <= input.len());
                }
            }
        }
    }
}
