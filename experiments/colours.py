"""Okabe and Ito's colours, distinguishable with every kind of colour vision."""

BLUE, RED, GREEN, PINK = '#0072b2', '#d55e00', '#009e73', '#cc79a7'
ORANGE, SKY, BLACK, GREY = '#e69f00', '#56b4e9', '#000000', '#999999'
CYCLE = [BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK, GREY]
