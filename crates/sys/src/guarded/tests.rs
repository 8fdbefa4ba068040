//! Tests of the parent module.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use super::*;

/// A file of bytes that tell their place, none of them zero.
fn file(length: usize) -> (File, Vec<u8>) {
    let bytes: Vec<u8> = (0..length)
        .map(|place| u8::try_from(place % 251 + 1).unwrap())
        .collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

fn read(map: &GuardedMap, offset: u64, length: usize) -> Vec<u8> {
    let mut out = vec![b'x'; length];
    map.read(offset, &mut out).unwrap();
    out
}

#[test]
fn all_ways_of_reading_agree_with_memory_at_any_place() {
    let (file, bytes) = file(4096 + 77);
    let map = GuardedMap::new(&file).unwrap();
    drop(file);
    assert_eq!(map.len(), bytes.len());
    let memory = &bytes[..];
    for offset in (0..40).chain(4080..4180) {
        let at = offset as u64;
        assert_eq!(map.bytes_at::<1>(at), memory.bytes_at::<1>(at));
        assert_eq!(map.u16_at(at), memory.u16_at(at));
        assert_eq!(map.u32_at(at), memory.u32_at(at));
        assert_eq!(map.u64_at(at), memory.u64_at(at));
        for length in 0..30 {
            let (mut ours, mut theirs) = (b"<".to_vec(), b"<".to_vec());
            assert_eq!(
                map.append_to(at, length, &mut ours),
                memory.append_to(at, length, &mut theirs)
            );
            assert_eq!(ours, theirs);
            let Some(end) = (offset + length <= bytes.len()).then_some(offset + length) else {
                assert_eq!(map.compare(at, length, b"x"), None);
                continue;
            };
            let mut wanted = bytes[offset..end].to_vec();
            assert_eq!(map.equals(at, &wanted), Some(true));
            wanted.push(0);
            assert_eq!(map.compare(at, length, &wanted), Some(Ordering::Less));
            for place in 0..length {
                for byte in [0, 255] {
                    let mut other = bytes[offset..end].to_vec();
                    other[place] = byte;
                    for kept in [place + 1, length] {
                        assert_eq!(
                            map.compare(at, length, &other[..kept]),
                            memory.compare(at, length, &other[..kept]),
                            "{offset} {length} {place} {byte}"
                        );
                    }
                }
            }
        }
    }
    for outside in [4096 + 78, u64::MAX, u64::MAX - 3, 1 << 63] {
        assert_eq!(map.bytes_at::<1>(outside), None);
        assert_eq!(map.read(outside, &mut [0; 9]), None);
        assert_eq!(map.append_to(outside, 5, &mut Vec::new()), None);
    }
    assert_eq!(map.append_to(0, usize::MAX, &mut Vec::new()), None);
    assert!(!map.is_damaged());
}

#[test]
fn a_file_that_is_cut_reads_as_zeros_and_is_known_as_damaged() {
    let (file, bytes) = file(64 * 1024);
    for (left, intact) in [(32 * 1024, 32 * 1024), (0, 0)] {
        let map = GuardedMap::new(&file).unwrap();
        assert!(!map.is_damaged());
        file.set_len(left).unwrap();
        assert_eq!(read(&map, 0, intact), &bytes[..intact]);
        assert!(!map.is_damaged());
        let zeros = read(&map, intact as u64, 32 * 1024);
        assert!(zeros.iter().all(|&byte| byte == 0));
        assert!(map.is_damaged());
        // A new map of a page that was never there.
        drop(map);
        assert!(left == 0 || !GuardedMap::new(&file).unwrap().is_damaged());
    }
    assert!(GuardedMap::new(&file).is_err());
}

#[test]
fn a_landmark_tells_of_a_cut_in_the_middle_of_a_page() {
    let (file, _) = file(3 * 4096);
    let map = GuardedMap::new(&file).unwrap();
    let landmark = map.landmark(map.len() as u64, 4096).unwrap();
    assert_eq!(landmark.offset, 3 * 4096 - 1);
    assert!(map.holds(landmark));
    file.set_len(3 * 4096 - 100).unwrap();
    assert!(!map.holds(landmark) && !map.is_damaged());
    let before = map.landmark(map.len() as u64, 4096).unwrap();
    assert_eq!(before.offset, 3 * 4096 - 101);
    assert_eq!(map.landmark(map.len() as u64, 50), None);
    file.set_len(4096).unwrap();
    assert!(!map.holds(before) && map.is_damaged());
}

#[test]
fn maps_of_other_threads_are_not_touched() {
    let (file, bytes) = file(40_000);
    std::thread::scope(|scope| {
        let whole = GuardedMap::new(&file).unwrap();
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let (cut, _) = self::file(20_000);
                    let map = GuardedMap::new(&cut).unwrap();
                    cut.set_len(5000).unwrap();
                    assert!(read(&map, 8192, 8192).iter().all(|&byte| byte == 0));
                    assert!(map.is_damaged());
                }
            });
        }
        for _ in 0..200 {
            let mine = GuardedMap::new(&file).unwrap();
            assert!(read(&mine, 0, 40_000) == bytes && read(&whole, 0, 40_000) == bytes);
            assert!(!mine.is_damaged() && !whole.is_damaged());
        }
    });
}

#[test]
fn a_file_may_grow_into_the_room_of_its_map() {
    let (mut file, _) = file(4096);
    let map = GuardedMap::with_room(&file, 8192).unwrap();
    file.write_all(&[b'n'; 4096]).unwrap();
    assert_eq!(read(&map, 4096, 4096), [b'n'; 4096]);
    assert!(!map.is_damaged());
}

/// Set in a process that is to end by SIGBUS.
const CHILD: &str = "POSTKEEP_TEST_SIGBUS";

#[test]
fn a_fault_elsewhere_ends_the_process() {
    if std::env::var_os(CHILD).is_some() {
        fault_elsewhere();
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "guarded::tests::a_fault_elsewhere_ends_the_process",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

fn fault_elsewhere() {
    let (file, _) = file(8192);
    let map = GuardedMap::new(&file).unwrap();
    // SAFETY: a new map that nobody else knows.
    let other = unsafe {
        libc::mmap(
            ptr::null_mut(),
            8192,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    file.set_len(0).unwrap();
    assert_eq!(read(&map, 0, 8192), [0; 8192]);
    assert!(map.is_damaged());
    // SAFETY: the address is mapped; that its page is gone is the point.
    let byte = unsafe { other.cast::<u8>().read_volatile() };
    panic!("still alive with {byte}");
}
