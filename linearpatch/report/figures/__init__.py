"""Figures for papers: PNG and PDF by matplotlib, legible in grey and for the colour-blind."""
