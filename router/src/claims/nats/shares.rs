//! Who shall have which partition: the same answer on every router that sees the same.

/// Gives every partition to one of `members` routers, at least one, so that no two differ by more than one. `owners` says who has
/// each now, by the place in the sorted list of routers; `None`: nobody who lives.
///
/// A partition stays where it is unless its owner is gone or has more than its share, so that as few move as can be. While they
/// move, in any order, the answer stays the same.
pub(super) fn shares(owners: &[Option<usize>], members: usize) -> Vec<usize> {
    let mut room = quotas(owners, members);
    let mut shares = vec![None; owners.len()];
    for (share, owner) in shares.iter_mut().zip(owners) {
        if let Some(owner) = *owner
            && let Some(room) = room.get_mut(owner)
            && *room > 0
        {
            *room -= 1;
            *share = Some(owner);
        }
    }
    let mut vacancies = room.iter().enumerate().flat_map(|(member, room)| vec![member; *room]);
    // There are as many vacancies as partitions without a place.
    shares.into_iter().map(|share| share.or_else(|| vacancies.next()).unwrap_or(0)).collect()
}

/// How many partitions each shall have. Where they do not divide evenly, one more goes to those who have one more already.
fn quotas(owners: &[Option<usize>], members: usize) -> Vec<usize> {
    let (base, over) = (owners.len() / members, owners.len() % members);
    let mut held = vec![0; members];
    for owner in owners.iter().flatten() {
        if let Some(held) = held.get_mut(*owner) {
            *held += 1;
        }
    }
    let mut ranked: Vec<usize> = (0..members).collect();
    // Stable. No more than this may count: the numbers change while partitions move.
    ranked.sort_by_key(|member| held[*member] <= base);
    let mut quotas = vec![base; members];
    for member in ranked.into_iter().take(over) {
        quotas[member] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(shares: &[usize], members: usize) -> Vec<usize> {
        (0..members).map(|member| shares.iter().filter(|owner| **owner == member).count()).collect()
    }

    fn moved(owners: &[Option<usize>], shares: &[usize]) -> usize {
        owners.iter().zip(shares).filter(|(owner, share)| **owner != Some(**share)).count()
    }

    #[test]
    fn the_first_router_has_all_and_the_second_gets_half_of_it() {
        let alone = shares(&[None; 64], 1);
        assert_eq!(alone, [0; 64]);
        let owners: Vec<_> = alone.into_iter().map(Some).collect();
        let both = shares(&owners, 2);
        assert_eq!(held(&both, 2), [32, 32]);
        assert_eq!(moved(&owners, &both), 32);
    }

    #[test]
    fn what_a_dead_router_had_is_spread_and_nothing_else_moves() {
        let owners: Vec<_> = (0..64).map(|partition| Some(partition % 3)).collect();
        // The second is gone; the third is now the second.
        let left: Vec<_> = owners
            .iter()
            .map(|owner| match owner {
                Some(0) => Some(0),
                Some(2) => Some(1),
                _ => None,
            })
            .collect();
        let shares = shares(&left, 2);
        assert_eq!(held(&shares, 2), [32, 32]);
        assert_eq!(moved(&left, &shares), 21);
    }

    proptest! {
        #[test]
        fn shares_are_even_and_as_few_move_as_can(
            members in 1..9_usize,
            owners in prop::collection::vec(prop::option::of(0..8_usize), 1..130),
        ) {
            let owners: Vec<_> =
                owners.into_iter().map(|owner| owner.filter(|owner| *owner < members)).collect();
            let shares = shares(&owners, members);
            let (base, over) = (owners.len() / members, owners.len() % members);
            let held = held(&shares, members);
            prop_assert!(held.iter().all(|held| *held == base || *held == base + 1));
            let mut before: Vec<_> = (0..members)
                .map(|member| owners.iter().filter(|owner| **owner == Some(member)).count())
                .collect();
            before.sort_unstable_by(|a, b| b.cmp(a));
            // The most that can stay: as many fit below each quota, the higher ones where there is most.
            let stay: usize = before
                .iter()
                .enumerate()
                .map(|(rank, held)| (*held).min(base + usize::from(rank < over)))
                .sum();
            prop_assert_eq!(moved(&owners, &shares), owners.len() - stay);
        }

        #[test]
        fn shares_stay_the_same_while_partitions_move(
            members in 1..7_usize,
            owners in prop::collection::vec(prop::option::of(0..6_usize), 1..70),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
        ) {
            let mut owners: Vec<_> =
                owners.into_iter().map(|owner| owner.filter(|owner| *owner < members)).collect();
            let aim = shares(&owners, members);
            for index in order {
                let place = index.index(owners.len());
                owners[place] = match owners[place] {
                    Some(owner) if owner == aim[place] => Some(owner),
                    Some(_) => None,
                    None => Some(aim[place]),
                };
                prop_assert_eq!(&shares(&owners, members), &aim);
            }
        }
    }
}
