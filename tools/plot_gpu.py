#!/usr/bin/env python3
"""Draws docs/images/gpu.svg: speed on one H200 beside llama.cpp. Needs nothing but Python.

    plot_gpu.py [OUTPUT.svg]

Figures: docs/cuda/cards.md, "Beside llama.cpp": the same Q4_0 file of the synthetic 31B, one run on one card.
"""
import argparse
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS, OTHER = "#2563eb", "#9ca3af"
CHARTS = [
    ("decode, tokens a second", [("gemma4", 193.9), ("llama.cpp", 95.3)]),
    ("prompt of 512, tokens a second", [("gemma4", 9695), ("llama.cpp", 2766)]),
    ("prompt of 2,048, tokens a second", [("gemma4", 9591), ("llama.cpp", 2941)]),
]
WIDTH, BAR, LEFT, LONGEST = 760, 22, 170, 470


def main():
    parts, y = [], 24
    for title, bars in CHARTS:
        parts.append(f'<text x="16" y="{y}" class="title">{title}</text>')
        y += 12
        most = max(value for _, value in bars)
        for name, value in bars:
            length = LONGEST * value / most
            shown = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
            colour = OURS if name.startswith("gemma4") else OTHER
            parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{name}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 4}" rx="2" fill="{colour}"/>')
            parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 15}">{shown}</text>')
            y += BAR
        y += 26
    style = "text{font:13px system-ui,sans-serif;fill:#1f2937}.title{font-weight:600}"
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y - 16}" role="img" '
           f'aria-label="Gemma 4 31B, Q4_0, on one H200"><style>{style}</style>'
           f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=pathlib.Path, default=ROOT / "docs/images/gpu.svg")
    output = parser.parse_args().output
    output.write_text(svg)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
