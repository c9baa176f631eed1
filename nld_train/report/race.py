"""The race of the decoding modes: a clock that counts forwards, and the tokens that each mode has by then.

Without a script all tokens stand there from the start.
"""

from html import escape

STYLE = """
  .clock { display: flex; gap: 12px; align-items: center; margin: 12px 0; position: sticky; top: 0; padding: 6px 0;
    background: var(--page) }
  .clock input { flex: 1; accent-color: var(--level) } .clock button { min-width: 5em; font: inherit }
  .clock output { min-width: 13em; color: var(--muted); font-variant-numeric: tabular-nums }
  .token.waiting { color: transparent; background: none !important }
  .mode.done { border-color: var(--level) } .mode .count { float: right; font-weight: 400; color: var(--muted) }
"""
PAUSE = 250  # milliseconds a forward, the same for every mode

SCRIPT = """<script>
for (const race of document.querySelectorAll(".race")) {
  const clock = race.querySelector("input"), button = race.querySelector("button"), said = race.querySelector("output");
  let timer = null;
  function draw() {
    const now = Number(clock.value);
    for (const mode of race.querySelectorAll(".mode")) {
      const tokens = [...mode.querySelectorAll("[data-forward]")];
      const there = tokens.filter(token => Number(token.dataset.forward) <= now).length;
      for (const token of tokens) token.classList.toggle("waiting", Number(token.dataset.forward) > now);
      mode.querySelector(".count").textContent = there + " of " + tokens.length + " tokens";
      mode.classList.toggle("done", Number(mode.dataset.forwards) <= now);
    }
    said.textContent = "forward " + now + " of " + clock.max;
  }
  function stop() { clearInterval(timer); timer = null; button.textContent = "Play"; }
  function step() { if (Number(clock.value) >= Number(clock.max)) stop(); else { clock.value++; draw(); } }
  button.onclick = () => {
    if (timer !== null) return stop();
    if (clock.value === clock.max) { clock.value = 0; draw(); }
    button.textContent = "Pause";
    timer = setInterval(step, PAUSE);
  };
  clock.oninput = () => { stop(); draw(); };
  draw();
}
</script>""".replace("PAUSE", str(PAUSE))


def race_html(panels: list[str], last: int) -> str:
    """Panels of `panel_html` side by side under one clock. last: forwards of the slowest mode."""
    clock = (
        '<div class="clock"><button type="button">Play</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="forward"/><output></output></div>'
    )
    return f'<div class="race">{clock}<div class="modes">{"".join(panels)}</div></div>'


def panel_html(mode: str, forwards: int, figures: str, text: str) -> str:
    """One mode: its name, its figures, and the HTML of its text, whose tokens are those of `race_token`."""
    return (
        f'<div class="mode" data-forwards="{forwards}"><h3>{escape(mode)}<span class="count"></span></h3>'
        f'<div class="note">{escape(figures)}</div><pre>{text}</pre></div>'
    )


def race_token(piece: str, forward: int, shade: str) -> str:
    """A token's text, which the forward of this number gave. shade: its CSS."""
    return (
        f'<span class="token" data-forward="{forward}" style="{shade}" title="forward {forward}">{escape(piece)}</span>'
    )
