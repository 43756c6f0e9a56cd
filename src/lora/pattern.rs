//! Regular expressions over module names, in Python's syntax, because PEFT's
//! settings hold them.
use crate::{Error, Result};
use onig::{MatchParam, Regex, RegexOptions, Region, SearchOptions, Syntax};

/// A compiled expression, and the setting that it came from.
#[derive(Debug)]
pub(super) struct Pattern {
    setting: &'static str,
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Matches a whole name: `re.fullmatch`, as `target_modules`.
    pub(super) fn whole(setting: &'static str, text: &str) -> Result<Self> {
        Self::new(setting, text, r"\A(?:", r")\Z")
    }

    /// Matches the last parts of a name, as the keys of `rank_pattern`.
    pub(super) fn end(setting: &'static str, text: &str) -> Result<Self> {
        Self::new(setting, text, r"\A(?:.*\.)?(?:", r")\Z")
    }

    /// Matches parts anywhere in a name, as `modules_to_save` where no adapter goes.
    pub(super) fn parts(setting: &'static str, text: &str) -> Result<Self> {
        Self::new(setting, text, r"\A(?:.*\.)?(?:", r")(?:\Z|\..*)")
    }

    /// Matches up to a layer's number, which [`Pattern::number`] gives.
    pub(super) fn layer(setting: &'static str, text: &str) -> Result<Self> {
        Self::new(setting, text, r"\A(?:.*?\.)?(?:", r")\.(?P<number>\d+)\.")
    }

    fn new(
        setting: &'static str,
        text: &str,
        before: &str,
        after: &str,
    ) -> Result<Self> {
        let compile = |text: &str| {
            let options = RegexOptions::REGEX_OPTION_CAPTURE_GROUP;
            Regex::with_options(text, options, Syntax::python()).map_err(|e| {
                let why = e.description().to_string();
                Error::setting(setting, format!("`{text}` is no pattern: {why}"))
            })
        };
        compile(text)?; // alone: `a)(b` must not pass because of our brackets
        let regex = compile(&format!("{before}{text}{after}"))?;
        Ok(Self { setting, text: text.into(), regex })
    }

    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn matches(&self, name: &str) -> Result<bool> {
        Ok(self.find(name, &mut Region::new())?.is_some())
    }

    /// The number, its last group, that a [`Pattern::layer`] finds in a name.
    pub(super) fn number(&self, name: &str) -> Result<Option<i64>> {
        let mut region = Region::new();
        let found = self.find(name, &mut region)?;
        let last = region.len().saturating_sub(1);
        let at = found.and_then(|()| region.pos(last));
        Ok(at.and_then(|(start, end)| name.get(start..end)?.parse().ok()))
    }

    fn find(&self, name: &str, region: &mut Region) -> Result<Option<()>> {
        let none = SearchOptions::SEARCH_OPTION_NONE;
        let limits = MatchParam::default();
        let at = self.regex.match_with_param(name, 0, none, Some(region), limits);
        let at = at.map_err(|e| {
            let (text, why) = (&self.text, e.description());
            let what = format!("`{text}` cannot be decided for `{name}`: {why}");
            Error::setting(self.setting, what)
        })?;
        Ok(at.map(|_| ()))
    }
}
