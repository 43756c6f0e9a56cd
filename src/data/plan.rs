//! Which rows stand together in a forward pass: one by one, by length, or packed.
use super::order;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// How rows are put together.
#[derive(Clone, Debug, PartialEq)]
pub enum Grouping {
    /// A row stands alone.
    Alone,
    /// Rows of similar length are in one micro-batch of so many.
    ByLength(usize),
    /// Whole rows are put together up to so many tokens.
    Packed(usize),
}

/// The order of an epoch: packs of rows, most often of one row. It depends on nothing
/// but the arguments, so that a resumed run meets the same packs, and the number of
/// packs is that of every epoch.
#[derive(Debug)]
pub struct Plan {
    grouping: Grouping,
    lengths: Vec<u32>,
    n: usize,
    seed: u64,
    shuffle: bool,
    epoch: Option<u64>,
    rows: Vec<u32>,
    /// Where in `rows` each pack ends; empty if each has one row.
    ends: Vec<u32>,
}

/// Micro-batches among which rows change places under [`Grouping::ByLength`].
const NEIGHBOURS: usize = 64;

/// A pack has at most as many rows as would, at the length of its longest, take this
/// many times the tokens of a full one: attention sees rows side by side, each as long
/// as the longest.
const GRID: usize = 4;

impl Plan {
    /// Over `n` rows. `lengths`, the tokens of each, is needed unless rows stand alone;
    /// packing leaves out rows of none.
    pub fn new(
        n: usize,
        lengths: Vec<u32>,
        grouping: Grouping,
        seed: u64,
        shuffle: bool,
    ) -> Self {
        let (rows, ends) = (vec![], vec![]);
        let epoch = None;
        let mut plan =
            Self { grouping, lengths, n, seed, shuffle, epoch, rows, ends };
        plan.go_to(0);
        plan
    }

    /// Packs in an epoch.
    pub fn packs(&self) -> usize {
        if self.ends.is_empty() { self.rows.len() } else { self.ends.len() }
    }

    /// The rows of pack `k` of the epoch.
    pub fn pack(&self, k: usize) -> &[u32] {
        if self.ends.is_empty() {
            return &self.rows[k..k + 1];
        }
        let start = if k == 0 { 0 } else { self.ends[k - 1] as usize };
        &self.rows[start..self.ends[k] as usize]
    }

    /// Puts the packs in the order of `epoch`.
    pub fn go_to(&mut self, epoch: u64) {
        if self.epoch == Some(epoch) {
            return;
        }
        self.epoch = Some(epoch);
        let rows = order(self.n, self.seed, epoch, self.shuffle);
        self.rows = rows.into_iter().map(|row| row as u32).collect();
        match self.grouping {
            Grouping::Alone => {}
            Grouping::ByLength(size) => self.group(size, epoch),
            Grouping::Packed(tokens) => {
                let mut packs = pack(&self.rows, &self.lengths, tokens);
                match self.shuffle {
                    true => shuffle(&mut packs, self.seed, epoch),
                    false => packs.sort_unstable_by_key(|p| p.iter().min().copied()),
                }
                self.rows = packs.concat();
                let mut end = 0;
                let ends = packs.iter().map(|pack| {
                    end += pack.len() as u32;
                    end
                });
                self.ends = ends.collect();
            }
        }
    }

    fn group(&mut self, size: usize, epoch: u64) {
        for neighbours in self.rows.chunks_mut(size * NEIGHBOURS) {
            neighbours.sort_by_key(|&row| Reverse(self.lengths[row as usize]));
        }
        if self.shuffle {
            // Micro-batches change places; the last, which may be short, stays.
            let whole = self.rows.len() / size * size;
            let rest = self.rows.split_off(whole);
            let mut batches: Vec<Vec<u32>> =
                self.rows.chunks(size).map(<[u32]>::to_vec).collect();
            shuffle(&mut batches, self.seed, epoch);
            self.rows = batches.concat();
            self.rows.extend(rest);
        }
    }
}

// ANCHOR: pack
/// Best fit, the longest rows first (Johnson, 1973): each goes where it leaves the
/// least room.
fn pack(rows: &[u32], lengths: &[u32], tokens: usize) -> Vec<Vec<u32>> {
    let length = |row: u32| lengths[row as usize] as usize;
    let mut rows: Vec<u32> =
        rows.iter().copied().filter(|&row| length(row) > 0).collect();
    rows.sort_by_key(|&row| Reverse(length(row)));
    let mut packs: Vec<Vec<u32>> = Vec::new();
    let mut with_room = BTreeMap::<usize, Vec<usize>>::new();
    for row in rows {
        let best = with_room.range_mut(length(row)..).next();
        let (room, at) = match best.and_then(|(&room, at)| Some((room, at.pop()?))) {
            Some((room, at)) => {
                if with_room[&room].is_empty() {
                    with_room.remove(&room);
                }
                (room, at)
            }
            None => {
                packs.push(Vec::new());
                (tokens.max(length(row)), packs.len() - 1)
            }
        };
        packs[at].push(row);
        let room = room - length(row);
        let longest = length(packs[at][0]);
        if room > 0 && packs[at].len() * longest < GRID * tokens {
            with_room.entry(room).or_default().push(at);
        }
    }
    packs
}
// ANCHOR_END: pack

/// Puts groups in an order of their own, which is not that of the rows.
fn shuffle<T: Clone>(groups: &mut Vec<T>, seed: u64, epoch: u64) {
    let order = order(groups.len(), !seed, epoch, true);
    *groups = order.into_iter().map(|i| groups[i].clone()).collect();
}
