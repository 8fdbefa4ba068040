use proptest::prelude::*;

use super::*;
use crate::goodbye::Goodbyes;
use crate::transfer;

fn alive<H>(_: &H) -> Option<Death> {
    None
}

fn handles<H>(ended: Vec<Ended<H>>) -> Vec<H> {
    ended.into_iter().map(|ended| ended.handle).collect()
}

fn limited(limits: Limits) -> Rules {
    Rules {
        limits,
        ..Rules::default()
    }
}

const S: Duration = Duration::from_secs(1);

fn at(seconds: u32) -> Duration {
    S * seconds
}

fn find(cache: &mut Cache<u32>, now: u32, label: &str) -> Option<u32> {
    cache
        .find_endpoint(at(now), label.as_bytes(), &mut alive)
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
    assert_eq!(
        cache
            .find_endpoint(almost, b"e", &mut alive)
            .unwrap()
            .handle,
        1
    );
    assert_eq!(cache.find_endpoint(at(2), b"e", &mut alive), None);
    assert_eq!(cache.next_expiry(), Some(Duration::ZERO));
    assert_eq!(handles(cache.take_ended()), [2]);
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
    assert_eq!(handles(cache.expire(at(1))), [2]);
    assert_eq!(find(&mut cache, 1, "e"), Some(1));
    assert_eq!(find(&mut cache, 1, "e"), Some(3));
    assert_eq!(cache.endpoints.len(), 0);
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
    assert_eq!(
        cache
            .find_destination(at(1), b"d", &mut alive)
            .unwrap()
            .handle,
        2
    );
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
        assert_eq!(cache.same.len(), usize::from(COUNT));
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
fn what_is_larger_than_the_cache_comes_back() {
    let mut cache = Cache::new(limited(Limits {
        bytes: 10,
        ..Limits::default()
    }));
    assert_eq!(
        cache.save_endpoint(at(0), S, b"12345", b"123456", 5),
        Err(SaveError::Full(5))
    );
    cache.save_endpoint(at(0), S, b"12345", b"1234", 6).unwrap();
    assert_eq!(
        cache.save_destination(at(0), S, b"1234", b"1234", b"123"),
        Err(SaveError::Full(()))
    );
    assert_eq!((cache.sessions(), cache.counters().refused_full), (1, 2));
    // A label that is there already takes no room; what does not fit takes the place of others.
    cache.save_endpoint(at(0), S, b"12345", b"1", 7).unwrap();
    assert_eq!(cache.sessions(), 2);
    cache
        .save_destination(at(0), S, b"d", b"1234", b"12345")
        .unwrap();
    assert_eq!(handles(cache.take_ended()), [6, 7]);
    cache.expire(at(3));
    assert_eq!(cache.bytes, 0);
}

#[test]
fn a_full_cache_gives_up_what_expires_soonest() {
    let mut cache = Cache::new(Rules {
        limits: Limits {
            sessions: 2,
            bindings: 1,
            ..Limits::default()
        },
        goodbyes: Goodbyes::parse("smtp:QUIT").unwrap(),
        ..Rules::default()
    });
    let save = |cache: &mut Cache<u32>, ttl, label: &[u8], handle| {
        cache
            .save_endpoint(at(0), at(ttl), label, b"", handle)
            .unwrap();
    };
    save(&mut cache, 5, b"smtp\na", 1);
    save(&mut cache, 3, b"smtp\nb", 2);
    save(&mut cache, 4, b"other\nc", 3);
    save(&mut cache, 9, b"smtp\nd", 4);
    let ended = cache.take_ended();
    assert_eq!((ended[0].handle, ended[1].handle, ended.len()), (2, 3, 2));
    assert!(ended.iter().all(|ended| ended.cause == Cause::Evicted));
    assert_eq!(ended[0].goodbye.as_deref(), Some(&b"QUIT\r\n"[..]));
    assert_eq!(ended[1].goodbye, None);
    let bind = |cache: &mut Cache<u32>, ttl, label: &[u8]| {
        cache
            .save_destination(at(0), at(ttl), label, b"", b"e")
            .unwrap();
    };
    bind(&mut cache, 9, b"d");
    bind(&mut cache, 1, b"f");
    // A refresh takes no room.
    bind(&mut cache, 2, b"f");
    assert_eq!(
        (cache.bindings(), cache.counters().evicted_bindings),
        (1, 1)
    );
    assert!(cache.destinations.find(b"d").is_none());
}

#[test]
fn an_endpoint_and_a_destination_have_their_share_only() {
    for ttls in [[5, 6, 7], [6, 5, 7]] {
        let mut cache = Cache::new(limited(Limits {
            endpoint_sessions: 2,
            destination_bindings: 2,
            ..Limits::default()
        }));
        cache.save_endpoint(at(0), at(1), b"f", b"", 0).unwrap();
        for ttl in ttls {
            cache.save_endpoint(at(0), at(ttl), b"e", b"", ttl).unwrap();
            let endpoint = [u8::try_from(ttl).unwrap()];
            cache
                .save_destination(at(0), at(ttl), b"d", b"", &endpoint)
                .unwrap();
        }
        let ended = cache.take_ended();
        assert_eq!(
            (ended[0].handle, ended[0].cause),
            (5, Cause::EvictedFromEndpoint)
        );
        assert_eq!((ended.len(), cache.sessions(), cache.bindings()), (1, 3, 2));
        assert!(cache.endpoints.find(&[5]).is_none());
    }
}

#[test]
fn the_newest_comes_first_when_told_so() {
    let mut cache = Cache::new(Rules {
        order: Order::NewestFirst,
        ..Rules::default()
    });
    for handle in 0..3 {
        cache.save_endpoint(at(0), S, b"e", b"p", handle).unwrap();
    }
    let found: Vec<_> = (0..4).map(|_| find(&mut cache, 0, "e")).collect();
    assert_eq!(found, [Some(2), Some(1), Some(0), None]);
}

#[test]
fn the_dead_are_passed_over_and_counted_by_cause() {
    let mut cache = Cache::new(Rules {
        goodbyes: Goodbyes::parse("*:QUIT").unwrap(),
        ..Rules::default()
    });
    for handle in 0..5 {
        cache
            .save_endpoint(at(0), at(5), b"e", b"", handle)
            .unwrap();
    }
    cache.save_endpoint(at(0), at(5), b"f", b"", 5).unwrap();
    cache
        .save_destination(at(0), at(5), b"d", b"q", b"e")
        .unwrap();
    cache
        .save_destination(at(0), at(5), b"d", b"r", b"f")
        .unwrap();
    let mut dying = |&handle: &u32| match handle {
        0 => Some(Death::Closed),
        1 => Some(Death::Unsolicited),
        3 | 4 => Some(Death::Broken),
        _ => None,
    };
    assert_eq!(
        cache.find_endpoint(at(1), b"e", &mut dying).unwrap().handle,
        2
    );
    let found = cache.find_destination(at(1), b"d", &mut dying).unwrap();
    assert_eq!((found.handle, &*found.destination_property), (5, &b"r"[..]));
    let counters = *cache.counters();
    assert_eq!(
        (
            counters.closed,
            counters.unsolicited,
            counters.broken,
            counters.found
        ),
        (1, 1, 2, 2)
    );
    assert!(
        cache
            .take_ended()
            .iter()
            .all(|ended| ended.goodbye.is_none())
    );
    let statistics = cache.take_statistics();
    assert_eq!(
        (statistics.endpoint_hits, statistics.destination_hits),
        (1, 1)
    );
    assert_eq!(
        (statistics.endpoint_misses, statistics.destination_misses),
        (0, 0)
    );
}

#[test]
fn a_session_that_was_found_dead_does_not_count() {
    let mut cache = Cache::default();
    for handle in 0..4 {
        cache.save_endpoint(at(0), S, b"e", b"", handle).unwrap();
    }
    cache.save_destination(at(0), S, b"d", b"", b"e").unwrap();
    for _ in 0..2 {
        let handle = find(&mut cache, 0, "e").unwrap();
        cache.found_dead_endpoint(handle, Death::Closed);
    }
    let found = cache.find_destination(at(0), b"d", &mut alive).unwrap();
    cache.found_dead_destination(found.handle, Death::Broken);
    assert_eq!(find(&mut cache, 0, "e"), Some(3));
    assert_eq!(handles(cache.take_ended()), [0, 1, 2]);
    let (counters, statistics) = (*cache.counters(), cache.take_statistics());
    assert_eq!(
        (counters.found, counters.closed, counters.broken),
        (1, 2, 1)
    );
    assert_eq!(
        (statistics.endpoint_hits, statistics.destination_hits),
        (1, 0)
    );
}

#[test]
fn an_identity_is_never_another_session_s() {
    let mut cache = Cache::default();
    let first = cache.save_endpoint(at(0), S, b"e", b"", 1).unwrap();
    assert_eq!(cache.handle(SessionId::from_token(first.token())), Some(&1));
    assert_eq!(find(&mut cache, 0, "e"), Some(1));
    let second = cache.save_endpoint(at(0), S, b"e", b"", 2).unwrap();
    assert_eq!((first.number, cache.handle(first)), (second.number, None));
    assert!(!cache.examine(first, &mut |_| Some(Death::Closed)));
    assert!(!cache.examine(second, &mut alive));
    assert!(cache.examine(second, &mut |_| Some(Death::Closed)));
    assert!(
        !cache.examine(SessionId::from_token(u64::MAX), &mut |_| Some(
            Death::Closed
        ))
    );
    assert_eq!(handles(cache.take_ended()), [2]);
}

#[test]
fn thousands_that_are_due_hold_up_no_operation_and_are_not_found() {
    let mut cache = Cache::default();
    let many = 10 * BATCH;
    for handle in 0..many {
        let label = handle.to_le_bytes();
        cache.save_endpoint(at(0), S, &label, b"", handle).unwrap();
        cache
            .save_destination(at(0), S, &label, b"", &label)
            .unwrap();
    }
    cache.save_endpoint(at(1), S, b"new", b"", many).unwrap();
    assert_eq!(cache.sessions(), many - STEP + 1);
    let last = (many - 1).to_le_bytes();
    assert_eq!(cache.find_destination(at(1), &last, &mut alive), None);
    assert_eq!(cache.find_endpoint(at(1), &last, &mut alive), None);
    // A binding whose time is up is not refreshed, it is made again.
    cache
        .save_destination(at(1), S, &last, b"", b"new")
        .unwrap();
    cache.save_destination(at(1), S, &last, b"", &last).unwrap();
    cache.save_endpoint(at(1), S, &last, b"", many + 1).unwrap();
    let found = cache.find_destination(at(1), &last, &mut alive);
    assert_eq!(found.unwrap().handle, many);
    let mut rounds = 0;
    while cache.next_expiry() <= Some(at(1)) {
        let ended = cache.expire(at(1));
        assert!(ended.len() <= BATCH + 8 * STEP);
        rounds += 1;
    }
    assert!(rounds >= 8, "{rounds}");
    assert_eq!((cache.sessions(), cache.bindings()), (1, 2));
    assert_eq!(cache.counters().expired, many as u64);
}

#[test]
fn a_shutdown_ends_them_all() {
    let mut cache = Cache::default();
    for handle in 0..3 {
        cache.save_endpoint(at(0), S, b"e", b"", handle).unwrap();
    }
    cache.save_endpoint(at(2), S, b"e", b"", 3).unwrap();
    let ended = cache.shut_down();
    assert_eq!((ended.len(), ended[3].cause), (4, Cause::Shutdown));
    assert_eq!((cache.sessions(), cache.counters().shut_down), (0, 1));
}

proptest! {
    /// All labels have the same hash here, and so have all bindings.
    #[test]
    fn no_session_is_found_under_another_label(
        saves in prop::collection::vec((prop::collection::vec(0_u8..3, 0..4), any::<bool>()), 0..60),
        finds in prop::collection::vec((prop::collection::vec(0_u8..3, 0..4), any::<bool>()), 0..60),
        newest in any::<bool>(),
    ) {
        let order = if newest { Order::NewestFirst } else { Order::OldestFirst };
        let mut cache = Cache::new(Rules { order, ..Rules::default() });
        let mut left = saves.len();
        for (label, _) in &saves {
            cache.save_endpoint(at(0), S, label, label, label.clone()).unwrap();
        }
        for (label, bind) in &saves {
            if *bind {
                // The destination and the endpoint are told apart, too.
                let destination = [label, &b"d"[..]].concat();
                cache.save_destination(at(0), S, &destination, label, label).unwrap();
            }
        }
        for (label, by_destination) in finds {
            if by_destination {
                let destination = [&label, &b"d"[..]].concat();
                if let Some(found) = cache.find_destination(at(0), &destination, &mut alive) {
                    prop_assert_eq!(&found.handle, &label);
                    prop_assert_eq!(&*found.destination_property, &*label);
                    prop_assert_eq!(&*found.endpoint_property, &*label);
                    left -= 1;
                }
            } else if let Some(found) = cache.find_endpoint(at(0), &label, &mut alive) {
                prop_assert_eq!(&found.handle, &label);
                prop_assert_eq!(&*found.endpoint_property, &*label);
                left -= 1;
            } else {
                let saved = saves.iter().filter(|(saved, _)| *saved == label).count();
                let found = saves.len() - left;
                prop_assert!(saved <= found, "a session is missing");
            }
        }
        prop_assert_eq!(cache.sessions(), left);
    }
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let mut cache = Cache::default();
    cache.save_endpoint(at(10), S, b"e", b"", 1).unwrap();
    cache.save_endpoint(at(2), S, b"e", b"", 2).unwrap();
    assert_eq!(handles(cache.expire(at(10))), [] as [i32; 0]);
    assert_eq!(cache.expire(at(11)).len(), 2);
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
    cache.find_destination(at(0), b"d", &mut alive).unwrap();
    assert_eq!(cache.statistics().endpoint_misses, 0);
    assert_eq!(cache.find_destination(at(0), b"d", &mut alive), None);
    assert_eq!(
        (
            cache.statistics().destination_hits,
            cache.statistics().destination_misses
        ),
        (1, 1)
    );
}

#[test]
fn what_moves_to_another_cache_keeps_its_order_its_time_and_its_label() {
    let mut old = Cache::default();
    for handle in 0..100 {
        let (ttl, label) = (
            at(10 + handle * 7 % 13),
            [b"a", b"b", b"c"][handle as usize % 3],
        );
        old.save_endpoint(at(0), ttl, label, &handle.to_le_bytes(), handle)
            .unwrap();
        old.save_destination(at(0), ttl, &(handle % 2).to_le_bytes(), b"q", label)
            .unwrap();
    }
    // It does not move, and it is not lost.
    old.save_endpoint(at(0), at(1), b"a", b"", 1000).unwrap();
    let mut new = Cache::default();
    loop {
        let mut moving = old.give(at(2));
        let Some(first) = moving.first() else { break };
        assert!(moving.len() <= transfer::MOST_SESSIONS);
        if first.handle % 2 == 0 {
            // Given in vain.
            let count = moving.len();
            let sessions = old.sessions();
            assert_eq!(old.take_back(at(2), moving).len(), count);
            assert_eq!(old.sessions(), sessions + count);
            moving = old.give(at(2));
        }
        for session in moving {
            assert_eq!(&*session.property, &session.handle.to_le_bytes());
            new.receive(at(5), session).unwrap();
        }
    }
    loop {
        let moving = old.give_bindings(at(2));
        if moving.is_empty() {
            break;
        }
        for binding in moving {
            new.receive_binding(at(5), &binding).unwrap();
        }
    }
    assert_eq!(handles(old.take_ended()), [1000]);
    assert_eq!((old.sessions(), old.bindings(), old.bytes), (0, 0, 0));
    let counters = *old.counters();
    assert_eq!(
        (counters.saved, counters.given, counters.expired),
        (101, 100, 1)
    );
    assert_eq!((new.sessions(), new.bindings()), (100, 6));
    assert_eq!(new.counters().received, 100);
    // The clock of the new one began three seconds later.
    assert_eq!(new.next_expiry(), Some(at(13)));
    let mut handles: Vec<u32> = Vec::new();
    for label in ["a", "b", "c"] {
        let these: Vec<u32> = std::iter::from_fn(|| find(&mut new, 5, label)).collect();
        assert!(
            these
                .iter()
                .all(|handle| label.as_bytes()[0] == b'a' + (handle % 3) as u8)
        );
        handles.extend(these);
    }
    handles.sort_unstable();
    assert_eq!(handles, (0..100).collect::<Vec<_>>());
}
