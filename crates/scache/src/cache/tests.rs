use super::*;

const S: Duration = Duration::from_secs(1);

fn at(seconds: u32) -> Duration {
    S * seconds
}

fn find(cache: &mut Cache<u32>, now: u32, label: &str) -> Option<u32> {
    cache
        .find_endpoint(at(now), label.as_bytes())
        .map(|found| found.handle)
}

#[test]
fn sessions_come_out_oldest_first_and_once() {
    let mut cache = Cache::default();
    for handle in 0..3 {
        cache.save_endpoint(at(0), S, b"e", b"p", handle).unwrap();
    }
    assert_eq!(cache.sessions(), 3);
    let handles: Vec<_> = (0..4).map(|_| find(&mut cache, 0, "e")).collect();
    assert_eq!(handles, [Some(0), Some(1), Some(2), None]);
}

#[test]
fn lifetime_is_exact() {
    let mut cache = Cache::default();
    let almost = at(2).checked_sub(Duration::from_nanos(1)).unwrap();
    cache.save_endpoint(at(0), at(2), b"e", b"", 1).unwrap();
    cache.save_endpoint(at(0), at(2), b"e", b"", 2).unwrap();
    assert_eq!(cache.next_expiry(), Some(at(2)));
    assert_eq!(cache.find_endpoint(almost, b"e").unwrap().handle, 1);
    assert_eq!(cache.find_endpoint(at(2), b"e"), None);
    assert_eq!(cache.next_expiry(), Some(Duration::ZERO));
    assert_eq!(cache.take_expired(), [2]);
    assert_eq!(cache.next_expiry(), None);
}

#[test]
fn a_session_in_the_middle_may_expire_first() {
    let mut cache = Cache::default();
    for (handle, ttl) in [(1, 9), (2, 1), (3, 9)] {
        cache
            .save_endpoint(at(0), at(ttl), b"e", b"", handle)
            .unwrap();
    }
    assert_eq!(cache.expire(at(1)).handles, [2]);
    assert_eq!(find(&mut cache, 1, "e"), Some(1));
    assert_eq!(find(&mut cache, 1, "e"), Some(3));
    assert_eq!(cache.endpoints.records.len(), 0);
}

#[test]
fn a_refresh_keeps_the_place_and_replaces_the_lifetime() {
    let mut cache = Cache::<u32>::default();
    for endpoint in [b"e2", b"e0", b"e1"] {
        cache
            .save_destination(at(0), at(5), b"d", b"q", endpoint)
            .unwrap();
    }
    cache
        .save_destination(at(1), at(1), b"d", b"q", b"e2")
        .unwrap();
    assert_eq!(cache.bindings(), 3);
    for (handle, endpoint) in [b"e0", b"e1", b"e2"].into_iter().enumerate() {
        let handle = u32::try_from(handle).unwrap();
        cache
            .save_endpoint(at(1), at(5), endpoint, b"", handle)
            .unwrap();
    }
    assert_eq!(cache.find_destination(at(1), b"d").unwrap().handle, 2);
    cache.expire(at(2));
    assert_eq!(cache.bindings(), 2);
}

#[test]
fn the_same_endpoint_with_another_property_is_another_binding() {
    let mut cache = Cache::<u32>::default();
    cache
        .save_destination(at(0), at(5), b"d", b"q", b"e")
        .unwrap();
    cache
        .save_destination(at(0), at(5), b"d", b"r", b"e")
        .unwrap();
    cache
        .save_destination(at(0), at(5), b"d", b"", b"")
        .unwrap();
    cache.save_destination(at(0), at(5), b"", b"", b"").unwrap();
    assert_eq!(
        (cache.bindings(), cache.destinations(), cache.endpoints()),
        (4, 2, 0)
    );
}

#[test]
fn bindings_with_one_hash_are_told_apart_and_removed_from_anywhere() {
    const COUNT: u8 = 4;
    for first_gone in 0..COUNT {
        let mut cache = Cache::<u32>::default();
        let save = |cache: &mut Cache<u32>, now, number: u8| {
            let ttl = if number == first_gone { 1 } else { 9 };
            cache
                .save_destination(at(now), at(ttl), b"d", &[number], b"e")
                .unwrap();
        };
        for number in 0..COUNT {
            save(&mut cache, 0, number);
        }
        assert_eq!(cache.same.len(), 1);
        cache.expire(at(1));
        assert_eq!(cache.bindings(), usize::from(COUNT) - 1);
        // Those that are left are still found, and so refreshed.
        for number in 0..COUNT {
            save(&mut cache, 1, number);
        }
        assert_eq!(cache.bindings(), usize::from(COUNT));
        cache.expire(at(10));
        assert_eq!((cache.bindings(), cache.same.len()), (0, 0));
    }
}

#[test]
fn limits_give_the_handle_back() {
    let mut cache = Cache::new(Limits {
        sessions: 1,
        bindings: 1,
        bytes: 10,
    });
    assert_eq!(
        cache.save_endpoint(at(0), S, b"12345", b"123456", 5),
        Err(SaveError::Full(5))
    );
    cache.save_endpoint(at(0), S, b"12345", b"1234", 6).unwrap();
    assert_eq!(
        cache.save_endpoint(at(0), S, b"e", b"", 7),
        Err(SaveError::Full(7))
    );
    cache
        .save_destination(at(0), at(2), b"d", b"", b"12345")
        .unwrap();
    assert_eq!(
        cache.save_destination(at(0), S, b"", b"", b""),
        Err(SaveError::Full(()))
    );
    // A refresh takes no room.
    cache
        .save_destination(at(0), at(3), b"d", b"", b"12345")
        .unwrap();
    cache.expire(at(3));
    assert_eq!(cache.bytes, 0);
    cache.save_endpoint(at(3), S, b"e", b"", 8).unwrap();
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let mut cache = Cache::default();
    cache.save_endpoint(at(10), S, b"e", b"", 1).unwrap();
    cache.save_endpoint(at(2), S, b"e", b"", 2).unwrap();
    assert_eq!(cache.expire(at(10)).handles, [] as [i32; 0]);
    assert_eq!(cache.expire(at(11)).handles.len(), 2);
}

#[test]
fn sizes_are_sampled_at_saves_only() {
    let mut cache = Cache::default();
    cache
        .save_destination(at(0), at(9), b"d", b"", b"e")
        .unwrap();
    cache.save_endpoint(at(0), at(9), b"e", b"", 1).unwrap();
    let first = cache.take_statistics();
    assert_eq!(
        (first.destinations, first.endpoints, first.sessions),
        (1, 1, 1)
    );
    assert!(cache.take_statistics().lines("x").is_empty());
    cache
        .save_destination(at(0), at(9), b"d", b"", b"e")
        .unwrap();
    let second = cache.take_statistics();
    assert_eq!(
        (second.destinations, second.endpoints, second.sessions),
        (1, 1, 0)
    );
    cache.find_destination(at(0), b"d").unwrap();
    assert_eq!(cache.statistics().endpoint_misses, 0);
    assert_eq!(cache.find_destination(at(0), b"d"), None);
    assert_eq!(
        (
            cache.statistics().destination_hits,
            cache.statistics().destination_misses
        ),
        (1, 1)
    );
}
