//! Kernels on the cards that are there. All of them are compiled and loaded when a card
//! is first used, so that it is settled then, once and for all, whether it has them.
use super::driver::{Context, Function, capability_of};
use super::{Call, Launch, SOURCES, nvrtc, store};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::OnceLock;
use tch::Device;

struct Card {
    context: Context,
    kernels: BTreeMap<String, Function>,
}

const MOST: usize = 64; // as many as libtorch knows
static CARDS: [OnceLock<std::result::Result<Card, String>>; MOST] =
    [const { OnceLock::new() }; MOST];

/// The kernels of CUDA device `index`.
pub(super) fn card(index: usize) -> Option<&'static dyn Launch> {
    ready(index).as_ref().ok().map(|card| card as &dyn Launch)
}

/// Why CUDA device `index` has no kernels, so that libtorch's operations do their work,
/// slower. `None`: it has them.
pub fn unavailable(index: usize) -> Option<String> {
    ready(index).as_ref().err().cloned()
}

/// The compute capability of CUDA device `index`, major and minor: 9 and 0 of an H100.
/// Asked once, of the driver alone. `None`: there is no such device.
pub fn capability(index: usize) -> Option<[i32; 2]> {
    static FOUND: [OnceLock<Option<[i32; 2]>>; MOST] =
        [const { OnceLock::new() }; MOST];
    *FOUND.get(index)?.get_or_init(|| capability_of(index).ok())
}

fn ready(index: usize) -> &'static std::result::Result<Card, String> {
    static NONE: std::result::Result<Card, String> = Err(String::new());
    let Some(card) = CARDS.get(index) else { return &NONE };
    card.get_or_init(|| {
        if std::env::var_os("DOWNHILL_CUDA_KERNELS").is_some_and(|v| v == "off") {
            return Err("DOWNHILL_CUDA_KERNELS=off".into());
        }
        let found = Card::new(index);
        if let Err(why) = &found {
            let text = "works without our kernels, slower";
            // Not `eprintln!`, which panics if nobody reads it.
            let _ = writeln!(std::io::stderr(), "CUDA device {index} {text}: {why}");
        }
        found
    })
}

impl Card {
    fn new(index: usize) -> std::result::Result<Self, String> {
        let context = Context::new(index)?;
        let architecture = &context.architecture()?;
        let compiled: Vec<_> = std::thread::scope(|scope| {
            let start = |source| {
                scope.spawn(move || {
                    code(source, architecture).map_err(|e| e.to_string())
                })
            };
            let all: Vec<_> = SOURCES.into_iter().map(start).collect();
            let wait = |t: std::thread::ScopedJoinHandle<_>| {
                t.join().unwrap_or_else(|_| Err("the compiler panicked".into()))
            };
            all.into_iter().map(wait).collect()
        });
        let mut kernels = BTreeMap::new();
        for code in compiled {
            kernels.extend(context.load(&code?)?);
        }
        Ok(Self { context, kernels })
    }
}

/// Machine code, from the cache if it is there. NVRTC is told apart by its length, for
/// which it need not be loaded.
fn code(source: super::Source, architecture: &str) -> Result<Vec<u8>> {
    let length =
        nvrtc::file().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
    let (name, compiler) =
        (format!("{}-{architecture}", source.name), length.to_string());
    let parts = [&source.text(), architecture, &compiler];
    store::kept(store::folder().as_deref(), &name, &parts, || {
        Ok(nvrtc::compile(source, architecture, &[])?.code)
    })
}

impl Launch for Card {
    fn launch(&self, call: &Call, _: Device) -> Result<()> {
        let name = call.kernel();
        let run = || {
            let kernel = self.kernels.get(name).ok_or("no such kernel")?;
            self.context.launch(kernel, call)
        };
        run().map_err(|what: String| Error::setting(format!("kernel {name}"), what))
    }
}
