//! Chat templates: the Jinja program beside a tokenizer that writes a conversation as
//! the text which its model was trained on.
use super::rows::RowResult;
use crate::{Error, Result};
use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig};
use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn by `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
pub(super) struct ChatTemplate(Environment<'static>);

const NAME: &str = "chat template";

impl ChatTemplate {
    /// Compiles `source`, found in `file`, in the environment that Transformers gives
    /// to templates; `special` holds its `bos_token`, `eos_token` and their like.
    pub(super) fn new(
        source: &str,
        file: &Path,
        special: &[(String, String)],
    ) -> Result<Self> {
        let broken = |e: minijinja::Error| {
            Error::file(file, format!("`chat_template` does not compile: {e}"))
        };
        let mut env = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(broken)?);
        // A template is somebody else's program: it may not run for ever.
        env.set_fuel(Some(10_000_000));
        env.set_unknown_method_callback(
            minijinja_contrib::pycompat::unknown_method_callback,
        );
        env.add_function("raise_exception", |why: String| refuse::<String>(why));
        env.add_function("strftime_now", |format: String| {
            let now =
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            strftime(&format, now.as_secs()).or_else(refuse)
        });
        for (name, token) in special {
            env.add_global(name.clone(), token.clone());
        }
        env.add_template_owned(NAME, without_generation_tags(source))
            .map_err(broken)?;
        Ok(Self(env))
    }

    /// The conversation as text; `answer` adds the words that ask for the next
    /// assistant turn, one with reasoning if `thinking` (where the template has the
    /// choice, as V3.1's has). The error is the template's own reason.
    pub(super) fn render(
        &self,
        messages: &[Message],
        answer: bool,
        thinking: bool,
    ) -> RowResult<String> {
        let turns = messages
            .iter()
            .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
            .collect::<Vec<Value>>();
        let template = self.0.get_template(NAME).map_err(|e| e.to_string())?;
        let given = context! { messages => turns, add_generation_prompt => answer };
        // Left undefined otherwise: a template may ask whether it is.
        let given = match thinking {
            true => context! { thinking => true, ..given },
            false => given,
        };
        template.render(given).map_err(|e| format!("the chat template refuses: {e}"))
    }
}

/// Some templates mark the assistant's words by `{% generation %}`, a tag that only
/// Transformers has. Here the words are found by [`ChatTemplate::training_text`], and the tag
/// becomes one that changes nothing.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let end = rest[at..].find("%}").map_or(rest.len(), |e| at + e + 2);
        let (before, tag) = (&rest[..at], &rest[at..end]);
        text.push_str(before);
        let word =
            tag.trim_matches(|c: char| "{}%-+".contains(c) || c.is_whitespace());
        match word {
            "generation" => text.push_str(&tag.replace(word, "if true")),
            "endgeneration" => text.push_str(&tag.replace(word, "endif")),
            _ => text.push_str(tag),
        }
        rest = &rest[end..];
    }
    text + rest
}

fn refuse<T>(why: String) -> std::result::Result<T, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
}

/// A date and time (UTC) by the few codes that templates use.
fn strftime(format: &str, seconds: u64) -> RowResult<String> {
    const MONTHS: &str = "January February March April May June July August \
                          September October November December";
    let (year, month, day) = civil(seconds / 86_400);
    let name = MONTHS.split(' ').nth(month as usize - 1).unwrap_or_default();
    let mut text = String::new();
    let mut codes = format.chars();
    while let Some(c) = codes.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let code = codes.next();
        text.push_str(&match code {
            Some('Y') => format!("{year}"),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => name.to_string(),
            Some('b') => name[..3].to_string(),
            Some('H') => format!("{:02}", seconds / 3600 % 24),
            Some('M') => format!("{:02}", seconds / 60 % 60),
            Some('S') => format!("{:02}", seconds % 60),
            _ => {
                return Err(format!(
                    "strftime_now(\"{format}\"): only %Y %m %d %B %b %H %M %S are known"
                ));
            }
        });
    }
    Ok(text)
}

/// Year, month, day of the `days`-th day after 1970-01-01 (the calendar repeats every
/// 400 years of 146,097 days; years are counted from March so that the leap day is
/// last).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    (year, month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let date =
            |seconds| strftime("%d %b %Y|%Y-%m-%d %H:%M:%S|%B", seconds).unwrap();
        assert_eq!(date(0), "01 Jan 1970|1970-01-01 00:00:00|January");
        assert_eq!(date(951_782_399), "28 Feb 2000|2000-02-28 23:59:59|February");
        assert_eq!(date(951_782_400), "29 Feb 2000|2000-02-29 00:00:00|February");
        assert_eq!(date(1_798_761_599), "31 Dec 2026|2026-12-31 23:59:59|December");
        assert!(strftime("%q", 0).is_err() && strftime("%", 0).is_err());
    }

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let source =
            "a {%- generation -%} b {% endgeneration %}{% if x %}c{% endif %}";
        let expected = "a {%- if true -%} b {% endif %}{% if x %}c{% endif %}";
        assert_eq!(without_generation_tags(source), expected);
        assert_eq!(without_generation_tags("{% unclosed"), "{% unclosed");
    }
}
